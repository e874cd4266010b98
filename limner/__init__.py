"""limner: words and pictures from a prompt to a published page, with the money right.

Owns: nothing; the packages below do. Words: GLOSSARY.md. Layers: ARCHITECTURE.md.
"""
