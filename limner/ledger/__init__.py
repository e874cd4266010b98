"""Owns: wallets, transfers, lots, grants, allowances, corrections, refunds, statements, closed days, invariants.

Words: a transfer moves milli-credits from a debit side to a credit side and never changes; a hold is pending, a
post settles it, a void releases it; a lot is credits that end together. Invariants: sql 0001/10_invariants.sql and 16_usage.sql list
fifteen, all zero at any moment.
Leaves to others: why a job costs what it costs (hub), who an organization is (tenancy).
"""
