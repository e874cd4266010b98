"""Owns: every outbound HTTP socket. Nothing else may import an HTTP client (tests/contracts hold it).

Words: a door is a kind of destination with its rules. Today there is one: this installation's own API, for the
demo; providers and untrusted URLs get theirs when something calls them.
"""
