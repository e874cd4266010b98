"""Owns: the catalog (models, providers, routes), pricing, jobs, runs, attempts, receipts, provider adapters.

Words: a worker's turn with a job is a run; asking a provider once during it is an attempt.
Invariants: only the SQL functions write money and job state; while a provider works, nothing holds a transaction
open. Leaves to others: balances (ledger), stored bytes (media), who may call (tenancy, web).
"""
