"""Owns: asking Google's Gemini API (v1beta): chats, pictures made and edited, vectors.

Words: contents are turns, parts are what stands in them; a candidate is an answer.
Invariants: as openai_compatible's. Leaves to others: what chats have in common (translating).
"""
