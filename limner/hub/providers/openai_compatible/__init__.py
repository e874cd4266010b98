"""Owns: asking any server that speaks OpenAI's HTTP interface: OpenAI, Ollama, vLLM, llama.cpp, LocalAI, gateways.

Words: a stated error is what a server says went wrong; only its kind leaves this package, never its text, for a server
may repeat anything in it, a key too.
Invariants: the adapter sees no key (egress attaches it to the origin it belongs to); nothing is sent that the parsed
request or the provider's configuration does not name. Leaves to others: sockets (egress), decoding pictures (media).
"""
