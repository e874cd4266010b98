"""Checks of English prose: grammar and spelling by Harper, clichés, wordiness, passives and repetitions by rules of limner's own.

Owns: what a check finds and how it is told (`report`), and the rules that find it.
Words: *suggestion* one thing that may be better, with its place; *rule* what found it, by a stable name; *part* a piece of
the text of bounded length; *share* about half of the parts; *reader* who reads a share, with a Harper of its own; *word* letters with
apostrophes inside.
Invariants: the check is a pure function of its arguments, however many processors there are; a suggestion's `original`
is the text between its positions, in code points and in UTF-16 alike; suggestions are in order and never overlap; Harper
is loaded in CPU children only, so `report` imports nothing heavy; no text is sent anywhere.
Leaves to others: who may ask, how often, and how much text (hub).
"""
