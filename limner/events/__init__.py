"""Owns: the event log, webhook endpoints and deliveries. Words: a domain declares its event types; each row is written in the
transaction that made it true. A delivery is owed for each event an endpoint asked for; a try is one request. Invariants: a job has
one terminal event; one delivery for each event and endpoint, under one id for ever; whatever waits has a turn. Leaves to others:
what a payload means, and what a body says.
"""
