"""Unknown words that are no mistakes: names, abbreviations, parts of identifiers and addresses."""

import re
import unicodedata
from collections.abc import Iterable

TITLES = re.compile(r"(?:^|\W)(?:Mr|Mrs|Ms|Mx|Dr|St|Sr|Jr|Prof|Rev|Gen|Capt|Lt|Sgt|Hon|Fr|vs|No|[A-Z])\.$")
OPENING = "\"'“‘([{*_—–- \t\u00a0"
ENDING = ".!?…:"
GLUE = frozenset("_@/\\#~=<>|$%&+")
JOINER = "\u200d"
MAX_ABBREVIATION = 6


def seen(text: str, places: Iterable[tuple[int, int]]) -> frozenset[str]:
    """The roots of those words that stand somewhere as names do: with a capital inside a sentence."""
    return frozenset(root(text[start:end]) for start, end in places if text[start].isupper() and is_inside(text, start))


def root(word: str) -> str:
    """Without a possessive ending, in one case."""
    low = word.casefold().replace("’", "'")
    return low.removesuffix("'s").removesuffix("'")


def is_inside(text: str, start: int) -> bool:
    """Whether the place is not the beginning of a sentence, a line after a full stop, or a paragraph."""
    before = text[max(0, start - 200) : start]
    stripped = before.rstrip(OPENING)
    if stripped.endswith("\n"):
        line = stripped[:-1].removesuffix("\r").rstrip(" \t")
        stripped = "" if line.endswith("\n") else line
    if not stripped:
        return False
    return stripped[-1] not in ENDING or TITLES.search(stripped) is not None


def is_identifier(text: str, start: int, end: int) -> bool:
    """A word of two letters at most or with a digit in it, an abbreviation in capitals, or a part of an address or name in code."""
    word = text[start:end]
    if len(word) <= 2 or not word.replace("'", "").replace("’", "").isalpha():
        return True
    if word.isupper() and len(word) <= MAX_ABBREVIATION:
        return True
    before, after = text[start - 1 : start], text[end : end + 1]
    follows = text[end + 1 : end + 2]
    if before and splits(text, start - 1):
        return True  # what stands behind an accent of its own is the rest of a word
    if before in GLUE or after in GLUE or before.isdigit() or after.isdigit():
        return True
    return (before in {".", ":"} and start > 1 and text[start - 2].isalnum()) or (
        after in {".", ":"} and follows.isalnum()
    )


def splits(text: str, place: int) -> bool:
    """Whether a mark that belongs to the character before it stands there: an accent of its own, a part of an emoji."""
    return text[place : place + 1] == JOINER or unicodedata.category(text[place : place + 1] or " ").startswith("M")


def is_one_slip(word: str, other: str) -> bool:
    """Whether one letter too many, too few, wrong or in its neighbour's place tells the two apart (Damerau, 1964)."""
    a, b = root(word), root(other)
    if a == b or abs(len(a) - len(b)) > 1:
        return a == b
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if len(a) > len(b):
        return a[at + 1 :] == b[at:]
    if len(a) < len(b):
        return a[at:] == b[at + 1 :]
    swapped = a[at : at + 2] == b[at : at + 2][::-1] and a[at + 2 :] == b[at + 2 :]
    return a[at + 1 :] == b[at + 1 :] or swapped
