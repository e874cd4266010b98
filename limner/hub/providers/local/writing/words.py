"""A text as words with places: what limner's own rules read."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from limner.hub.providers.local.writing.report import Severity, Type

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
JOINT = re.compile(r"[ \t\u00a0]+(?:\r?\n[ \t]*)?|\r?\n[ \t]*|[-‐‑]")
"""What may stand inside a phrase: blanks, one end of line, a hyphen. Commas and full stops end it."""
STOP = re.compile(r"[.!?…]|\n\s*\n")


class Word(NamedTuple):
    """`low`: in lower case, with straight apostrophes. `joined`: only a joint stands before it. Places in code points."""

    low: str
    start: int
    end: int
    joined: bool
    sentence: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a rule found, before overlaps are settled; the fields are those of report.Suggestion."""

    type: Type
    severity: Severity
    rule: str
    start: int
    end: int
    replacement: str | None
    explanation: str
    others: tuple[str, ...] = ()


def listed(words: str) -> frozenset[str]:
    """A set of words, written as they are read."""
    return frozenset(words.split())


def split(text: str) -> list[Word]:
    """The words of a text, in order."""
    words: list[Word] = []
    end = sentence = 0
    for match in WORD.finditer(text):
        start = match.start()
        joined = bool(words) and (text[end:start] == " " or JOINT.fullmatch(text, end, start) is not None)
        if not joined and STOP.search(text, end, start):
            sentence += 1
        words.append(Word(match[0].lower().replace("’", "'"), start, match.end(), joined, sentence))
        end = match.end()
    return words


def like(original: str, replacement: str) -> str:
    """The replacement with a capital where the original has one."""
    return replacement[:1].upper() + replacement[1:] if original[:1].isupper() else replacement
