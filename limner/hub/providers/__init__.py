"""Provider adapters, one small file (or folder) each, all speaking `base`."""
