"""Owns: organizations, apps, API keys, end users, the audit log.

Words: an organization is the tenant; an app is its API client; an end user is a person inside an app, known by
the app's `external_id`. Invariants: a foreign object and an absent one are the same 404; a key is stored as its
SHA-256 only. Leaves to others: balances (ledger), what a key is used for (hub).
"""
