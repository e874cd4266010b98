"""An answer as a stream sends it, and how much of a text is counted. Imports nothing heavy."""

import re

from limner.hub.providers.local.reading.terms import IDEOGRAPHS, LETTER

MAX_PIECE = 40
"""Characters of a word, and of white space, in one piece: a text without blanks still comes bit by bit."""
PIECE = re.compile(rf"\S{{1,{MAX_PIECE}}}\s{{0,{MAX_PIECE}}}|\s{{1,{MAX_PIECE}}}")
COUNTED_CHARS = 20
"""A longer word counts once for each so many characters begun: hardly an ordinary word is longer, and reading one takes longer too."""
COUNTED = re.compile(
    rf"[{IDEOGRAPHS}]|{LETTER}+(?:['’]{LETTER}+)*|[^\w\s](?:[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff]|\u200d[^\w\s])*|_"
)


def pieces(text: str) -> list[str]:
    """The text in the pieces a stream sends: a word with the white space behind it. Joined they are the text."""
    return PIECE.findall(text)


def tokens(text: str) -> int:
    """How many tokens a text has: words and punctuation marks.

    One is a word with the apostrophes inside it, a number, a Chinese character or kana, a punctuation mark, a symbol, an
    emoji with what changes it. A word longer than COUNTED_CHARS characters is one for each so many begun. White space is none.
    """
    return sum(-(-len(found) // COUNTED_CHARS) for found in COUNTED.findall(text))
