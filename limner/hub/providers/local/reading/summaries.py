"""The sentences that carry the most of a text: in a row, or as a list of points."""

from collections.abc import Iterable, Sequence
from itertools import islice

from limner.hub.providers.local.reading.ranks import Bag, bags, is_said, ranked
from limner.hub.providers.local.reading.sentences import UNSPACED, Sentence
from limner.hub.providers.local.reading.shapes import Amount
from limner.hub.providers.local.reading.terms import words

PART = 4
MOST = 5
"""Unless a number is asked for, a summary has one in PART of the sentences, and at most MOST of them; a list has MOST points."""
CUT = " …"


def summary(sentences: Sequence[Sentence], amount: Amount | None) -> tuple[str, int]:
    """The best sentences in the text's order, and how many these are.

    An amount of words or characters is a bound: sentences go in, best first, as long as they fit; when none does, the best one is
    cut behind its last word that fits, and says so by an ellipsis.
    """
    found = bags(sentences)
    best = ranked(sentences, found)
    if amount is None:
        chosen = _different(best, found, min(MOST, max(1, round(len(sentences) / PART))))
    elif amount.unit == "sentences":
        chosen = _different(best, found, amount.count)
    else:
        chosen = _fitting(sentences, _different(best, found, len(best)), amount)
        if not chosen:
            return _beginning(sentences[best[0]].text, amount), 1
    return joined(sentences[place] for place in sorted(chosen)), len(chosen)


def points(sentences: Sequence[Sentence], amount: Amount | None) -> tuple[str, int]:
    """The best sentences in the text's order, a line with "- " for each, and how many these are. None says what another does."""
    found = bags(sentences)
    count = amount.count if amount is not None and amount.unit == "sentences" else MOST
    chosen = _different(ranked(sentences, found), found, count)
    return "\n".join(f"- {sentences[place].text}" for place in sorted(chosen)), len(chosen)


def joined(sentences: Iterable[Sentence]) -> str:
    """Sentences in a row, with a blank between them where their script has blanks."""
    text = ""
    for sentence in sentences:
        text += ("" if not text or text[-1] in UNSPACED else " ") + sentence.text
    return text


def _different(best: Iterable[int], found: Sequence[Bag], count: int) -> list[int]:
    """The first so many that do not say what one of them says."""
    chosen: list[int] = []
    for place in best:
        if len(chosen) >= count:
            break
        if not is_said(found[place], [found[other] for other in chosen]):
            chosen.append(place)
    return chosen


def _fitting(sentences: Sequence[Sentence], best: Iterable[int], amount: Amount) -> list[int]:
    chosen: list[int] = []
    left = amount.count
    for place in best:
        # a blank before each but the first is counted for each
        size = _words(sentences[place].text) if amount.unit == "words" else len(sentences[place].text) + 1
        if size <= left or (amount.unit == "characters" and not chosen and size - 1 <= left):
            chosen.append(place)
            left -= size
    return chosen


def _words(text: str) -> int:
    return sum(1 for _ in words(text))


def _beginning(text: str, amount: Amount) -> str:
    if amount.unit == "characters":
        short = text[: max(1, amount.count - len(CUT))]
        return short.rpartition(" ")[0].rstrip() + CUT if " " in short else short
    end = 0
    for word in islice(words(text), amount.count):
        end = text.index(word, end) + len(word)
    return text[:end] + CUT
