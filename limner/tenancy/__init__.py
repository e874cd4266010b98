"""Owns: organizations, apps, API keys, end users, the audit log.

Words: organizations are the tenants, apps their API clients, end users whom an app works for, under the ids it
gives them. Invariants: a foreign object and an absent one are the same 404; a key is stored as its
SHA-256 only. Leaves to others: balances (ledger), what a key is used for (hub).
"""
