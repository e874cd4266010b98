"""Owns: the catalog (models, providers, routes), pricing, jobs, runs, attempts, receipts, provider adapters.

Words: a job is priced and durable; a run is one claim of it by a worker; an attempt is one try at one provider.
Invariants: money and job state are written by the SQL functions only; no transaction is open while a provider
works. Leaves to others: balances (ledger), stored bytes (media), who may call (tenancy, web).
"""
