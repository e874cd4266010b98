"""Owns: stored objects, their signed URLs, images in and out, uploads and their smaller copies.

Words: a key names an object (`outputs/<org>/<job>/<fence>/<n>.<ext>`, `q/<org>/<upload>` for bytes as they came,
`u/<org>/<upload>/<sha>.<ext>` for an uploaded picture, `v/<org>/<upload>/<sha>/<width>.<format>` for a copy of it); inspecting decodes
what came in, re-encoding makes a fresh file of what goes out; a ticket is what bytes are put with. Invariants: no byte is served that
limner did not encode itself; a stranger's bytes are decoded in a process of their own; what an organization's uploads take is counted
in the commit that changes it. Leaves to others: which job an object belongs to, and the uploads' HTTP surface (hub).
"""
