"""Owns: asking Replicate's HTTP API, and servers that speak it, for predictions: asynchronous tasks of any model there.

Words: a prediction is Replicate's task; a route's mapping says by what name a model takes each field of limner's input.
Invariants: a prediction's id is recorded before it is asked after; nothing is sent that neither the parsed request nor the
configuration names; no text of an error leaves this package. Leaves to others: sockets (egress), fetching and decoding results.
"""
