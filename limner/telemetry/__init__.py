"""Owns: structured logs and metrics. Words: one JSON line a log entry, Prometheus names start with `limner_`."""
