"""Owns: every outbound HTTP socket. Nothing else may import an HTTP client (tests/contracts hold it).

Words: a door is a kind of destination with its rules. `fixed` is the door to hosts that the operator named, `untrusted`
the one to URLs that strangers gave; `loopback` and `probe` reach this installation itself. An origin is scheme, host and
port, compared exactly (`limner.kit.origins`).

Always: https, but for exact origins that the operator excepted; no redirect is followed that was not checked like the first
URL; no proxy, cookie, netrc or compression; every wait and every size has a bound; a provider's key leaves with a request
to the origin it belongs to and stands in no error, log or repr.

Leaves to others: when to call again (`sent` tells whether that could do something twice), what an answer means, and what
tenants are told beyond an error's `code`.
"""
