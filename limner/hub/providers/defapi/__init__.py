"""Owns: asking DefAPI for pictures: asynchronous tasks, found by their id alone.

There is no complete public reference: what is spoken here is what public clients were seen to send and to get. Invariants: a
task's id is recorded before it is asked after; an answer that is not understood is no result. Leaves to others: sockets (egress),
fetching and decoding results.
"""
