"""A text cut into parts that Harper is given one by one: its time grows with the square of some texts' length."""

import bisect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_PART = 2000
MAX_RUN = 60
"""Characters without a blank: what is longer is no English word, and is hidden from Harper."""
RUN = re.compile(rf"\S{{{MAX_RUN + 1},}}")
PARAGRAPHS = re.compile(r"\n[ \t\r]*\n\s*")
SENTENCES = re.compile(r"[.!?…][\"'”’)\]]*\s+")
BLANKS = re.compile(r"\s+")
MIN_SHARED = 1000
"""Code points of the shortest text that is cut into two shares."""
FIRST_SHARE = 0.47
"""Of the text: who reads it has limner's own rules to do as well."""
BETWEEN = re.compile(r"(?<=[a-z]{4}[.!?])(?:\s+(?=[A-Z])|[\"”]\s+(?=[\"“]?[A-Z])|\s+(?=[\"“][A-Z]))")
"""Where a sentence ends for Harper too: it reads on behind an abbreviation or an initial."""
QUOTES = re.compile(r"[\"“”]")


@dataclass(frozen=True, slots=True)
class Part:
    """`text` begins at code point `start` of the whole; `hidden`: the places (in it) of runs that digits stand in for.

    `goes_on`: the next part is the rest of this one.
    """

    start: int
    text: str
    hidden: tuple[tuple[int, int], ...]
    goes_on: bool = False

    def hides(self, start: int, end: int) -> bool:
        """Whether something of the place was hidden."""
        return any(start < to and at < end for at, to in self.hidden)

    def cut(self, at: int) -> tuple["Part", "Part"]:
        """The two parts before and behind a blank that ends at place `at`."""
        before = tuple(run for run in self.hidden if run[1] <= at)
        behind = tuple((start - at, end - at) for start, end in self.hidden[len(before) :])
        rest = self.text[at:]
        return Part(self.start, self.text[:at], before, bool(rest)), Part(self.start + at, rest, behind)


def parts(text: str) -> Iterator[Part]:
    """The text in parts of at most MAX_PART code points, cut between paragraphs, else sentences, else words, else anywhere."""
    start = 0
    while start < len(text):
        end = _end(text, start)
        piece = text[start:end]
        hidden = tuple(match.span() for match in RUN.finditer(piece))
        yield Part(start, RUN.sub(lambda match: "0" * len(match[0]), piece), hidden)
        start = end


def shares(text: str) -> tuple[Sequence[Part], Sequence[Part]]:
    """The parts in two shares of about the same length, in order; the second may be empty.

    One part may be cut in two for it, but only between two sentences that have nothing to do with each other for Harper: what it
    finds in them is the same.
    """
    whole = list(parts(text))
    if len(text) < MIN_SHARED:
        return whole, ()
    aim = round(len(text) * FIRST_SHARE)
    index = bisect.bisect_right(whole, aim, key=lambda part: part.start) - 1
    middle = whole[index]
    place = min((0, *_ends(middle), len(middle.text)), key=lambda at: abs(middle.start + at - aim))
    cut = [part for part in middle.cut(place) if part.text]
    first, second = [*whole[:index], *cut[: place > 0]], [*cut[place > 0 :], *whole[index + 1 :]]
    return (first, second) if first else (second, ())


def _ends(part: Part) -> Iterator[int]:
    """Places between sentences with no quotation open."""
    seen: Counter[str] = Counter()
    at = 0
    for match in BETWEEN.finditer(part.text):
        seen.update(QUOTES.findall(part.text, at, match.end()))
        at = match.end()
        if seen['"'] % 2 == 0 and seen["“"] == seen["”"]:
            yield at


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
