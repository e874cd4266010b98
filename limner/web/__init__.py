"""Owns: the HTTP edge: who calls, request ids, body limits, errors on the wire, idempotency keys.

Words: `Caller` is plain data about an authenticated app; `ApiError` is the one error, rendered as its surface
wants it. Leaves to others: what a request means.
"""
