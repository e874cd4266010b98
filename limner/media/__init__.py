"""Owns: stored objects, their signed URLs, images in and out.

Words: a key names an object (`outputs/<org>/<job>/<fence>/<n>.<ext>`); inspecting decodes what came in, re-encoding
makes a fresh file of what goes out. Invariants: no byte is served that limner did not encode itself. Leaves to
others: which job an object belongs to (hub).
"""
