"""A text as sentences, each with its place. Rules for full stops that are none, lists, quotations and scripts without blanks."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from limner.hub.providers.local.reading.terms import STARTERS
from limner.hub.providers.local.writing.words import listed

MAX_SENTENCE = 1000
"""Characters: what goes on without a full stop is cut at a comma or a blank, so that one sentence is never the whole text."""
MAX_QUOTE = 300
"""Characters of a quotation that is kept in one piece, full stops inside included."""
WRAPPED = 40
"""Characters: a line at least so long may go on in the next one; a shorter one is a heading or a verse."""
SAMPLE = 10_000
CARELESS = 100
"""A text with fewer than one capital in so many letters is written without them."""
MARKER = re.compile(r"\s*(?:(?:[-*+•‣◦▪●·–—]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|#{1,6}|>{1,6})\s+)+")
STOP = re.compile(r"([.!?…؟۔।。！？｡]+)([\"'”’»)\]}」』〉》]*)")
UNSPACED = "。！？｡"
SAID = re.compile("[ぁ-ゟ]")
"""What follows a quotation when the sentence goes on: 」と言った."""
OPENING = "\"'“‘«([{¿¡*_"
QUOTED = re.compile(
    rf"“[^“”]{{1,{MAX_QUOTE}}}”|(?<![^\s(\[—–-])\"[^\"]{{1,{MAX_QUOTE}}}\"|「[^「」]{{1,{MAX_QUOTE}}}」"
)
COMMAS = re.compile(r"[;:,—–،、，；]\s*")
BLANKS = re.compile(r"\s+")
INNER_STOPS = re.compile(r"(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}")
REACH = 30

TITLES = listed(
    "mr mrs ms mx messrs dr prof rev fr st sen rep gov gen col maj capt cpt lt sgt hon pres mt ft vs viz cf ca approx"
)
"""Abbreviations that no sentence ends with."""
NUMBERED = listed("no nos nr fig figs eq p pp vol ch sec art para ed jan feb mar apr jun jul aug sep sept oct nov dec")
"""No full stop of a sentence when a number follows."""
CLIPPED = listed("inc ltd co corp jr sr al dept est ave blvd rd bros assn univ min max tel ext vol ed eds")
"""Abbreviations that a sentence may end with: the next word tells."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text` is the text between `start` and `end` (code points) with each run of white space as one blank."""

    start: int
    end: int
    text: str


def split(text: str) -> list[Sentence]:
    """The sentences of a text in order; markers of list items and pieces without a letter or digit are none of theirs.

    Time is linear in the length.
    """
    careless = _is_careless(text)
    found: list[Sentence] = []
    for start, end in _blocks(text):
        for place in _cuts(text, start, end, careless):
            for at, to in _bounded(text, *place):
                piece = " ".join(text[at:to].split())
                if any(character.isalnum() for character in piece):
                    found.append(_trimmed(text, at, to, piece))
    return found


def _trimmed(text: str, start: int, end: int, piece: str) -> Sentence:
    whole = text[start:end]
    return Sentence(start + len(whole) - len(whole.lstrip()), end - len(whole) + len(whole.rstrip()), piece)


def _is_careless(text: str) -> bool:
    sample = text[:SAMPLE]
    letters = sum(map(str.isalpha, sample))
    return sum(map(str.isupper, sample)) * CARELESS < letters


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Places of what no sentence goes beyond: paragraphs, items of lists, headings, verses."""
    start = end = at = 0
    last = ""
    for line in text.splitlines(keepends=True):
        marker = MARKER.match(line)
        if last and (not line.strip() or marker or _ends_block(last, line)):
            yield start, end
            last = ""
        if line.strip():
            if not last:
                start = at + (marker.end() if marker else 0)
            end, last = at + len(line), line
        at += len(line)
    if last:
        yield start, end


def _ends_block(line: str, following: str) -> bool:
    if len(line.strip()) >= WRAPPED:
        return False
    first = following.strip().lstrip(OPENING)[:1]
    return not first.islower() and not line.rstrip().endswith((",", "-"))


def _cuts(text: str, start: int, end: int, careless: bool) -> Iterator[tuple[int, int]]:
    """The sentences of a block."""
    quotes = [match.span() for match in QUOTED.finditer(text, start, end)]
    begins = [place[0] for place in quotes]
    for match in STOP.finditer(text, start, end):
        stop = match.end()
        if stop >= end:
            break
        nearest = bisect_right(begins, match.start()) - 1
        if nearest >= 0 and stop < quotes[nearest][1]:
            continue
        if _parts(text, start, match, end, careless):
            yield start, stop
            start = stop
    yield start, end


def _parts(text: str, start: int, match: re.Match[str], end: int, careless: bool) -> bool:
    following = text[match.end()]
    if match[1][-1] in UNSPACED:
        return not (match[2] and SAID.match(following))
    return following.isspace() and _ends(text, start, match, end, careless)


def _ends(text: str, start: int, match: re.Match[str], end: int, careless: bool) -> bool:
    """Whether a stop before white space ends a sentence: told by its kind, the word before it and what follows."""
    following = text[match.end() : min(end, match.end() + 2 * REACH)].lstrip().lstrip(OPENING)
    goes_on = following[:1].islower()
    mark, closed = match[1], match[2]
    if "." not in mark and "…" not in mark:
        return not (goes_on and closed)
    if len(mark) > 1 or mark == "…":
        return not goes_on
    word = text[max(start, match.start() - REACH) : match.start()].rpartition(" ")[2].strip(OPENING)
    if goes_on:
        return careless and not closed and not _is_short(word)
    return bool(closed) or _may_end(word, following)


def _is_short(word: str) -> bool:
    low = word.lower()
    return len(word) == 1 or "." in word or low in TITLES or low in CLIPPED or low == "etc"


def _may_end(word: str, following: str) -> bool:
    low = word.lower()
    if low in TITLES:
        return False
    if following[:1].isdigit() and (low in NUMBERED or low in CLIPPED):
        return False
    is_initial = len(word) == 1 and word.isupper()
    if is_initial or low in CLIPPED or INNER_STOPS.fullmatch(word):
        first, *_ = following.split(maxsplit=1) or [""]
        return first.lower().rstrip(",") in STARTERS
    return True


def _bounded(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence in pieces of at most MAX_SENTENCE characters."""
    while end - start > MAX_SENTENCE:
        limit = start + MAX_SENTENCE
        cut = limit
        for boundary in (COMMAS, BLANKS):
            places = [match.end() for match in boundary.finditer(text, start + 1, limit)]
            if places:
                cut = places[-1]
                break
        yield start, cut
        start = cut
    yield start, end
