"""Owns: wallets, transfers, grants, refunds, statements, invariants.

Words: a transfer moves milli-credits from a debit side to a credit side and never changes; a hold is pending, a
post settles it, a void releases it. Invariants: sql 0001/08_invariants.sql lists ten, all zero at any moment.
Leaves to others: why a job costs what it costs (hub), who an organization is (tenancy).
"""
