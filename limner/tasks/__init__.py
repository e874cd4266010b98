"""Owns: periodic duties, each done by one worker of the installation at a time. Leaves to others: what they do."""
