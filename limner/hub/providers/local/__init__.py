"""The offline provider: pictures by arithmetic and checks of prose by rules, with no key, no network and no model weights.

Owns: six models (canvas, inpaint, stylise, upscale, describe, check), their schemas, and the code that computes them.
Words: *scene* a whole composition of the canvas; *palette* its colours; *brush* a reusable way of filling pixels.
Invariants: a result depends on the request alone (class A: resending is free); pixels and dictionaries live in CPU children only,
so `adapter` and `models` import nothing heavy; nothing here claims to be a neural model.
Leaves to others: prices, routing, storing and re-encoding of outputs (hub, media).
"""
