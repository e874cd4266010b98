"""A text cut into parts that Harper is given one by one: its time grows with the square of some texts' length."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PART = 2000
MAX_RUN = 60
"""Characters without a blank: what is longer is no English word, and is hidden from Harper."""
RUN = re.compile(rf"\S{{{MAX_RUN + 1},}}")
PARAGRAPHS = re.compile(r"\n[ \t\r]*\n\s*")
SENTENCES = re.compile(r"[.!?…][\"'”’)\]]*\s+")
BLANKS = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Part:
    """`text` begins at code point `start` of the whole; `hidden`: the places (in it) of runs that digits stand in for."""

    start: int
    text: str
    hidden: tuple[tuple[int, int], ...]

    def hides(self, start: int, end: int) -> bool:
        """Whether something of the place was hidden."""
        return any(start < to and at < end for at, to in self.hidden)


def parts(text: str) -> Iterator[Part]:
    """The text in parts of at most MAX_PART code points, cut between paragraphs, else sentences, else words, else anywhere."""
    start = 0
    while start < len(text):
        end = _end(text, start)
        piece = text[start:end]
        hidden = tuple(match.span() for match in RUN.finditer(piece))
        yield Part(start, RUN.sub(lambda match: "0" * len(match[0]), piece), hidden)
        start = end


def _end(text: str, start: int) -> int:
    limit = start + MAX_PART
    if limit >= len(text):
        return len(text)
    for boundary in (PARAGRAPHS, SENTENCES, BLANKS):
        last = None
        for match in boundary.finditer(text, start, limit):
            last = match.end()
        if last is not None:
            return last
    return limit
