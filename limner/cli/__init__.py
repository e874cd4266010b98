"""Owns: the `limner` command. Leaves to others: everything it does; a command parses, calls one verb and prints."""
