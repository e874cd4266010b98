"""Owns: the event log. Words: a domain declares its event types; each row is written in the transaction that made
it true. Invariants: a job has one terminal event. Leaves to others: what a payload means.
"""
