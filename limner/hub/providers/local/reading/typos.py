"""A text with its mistakes of spelling and grammar corrected, as far as rules find them. Loads Harper: CPU children only."""

from collections.abc import Iterable, Iterator

from limner.hub.providers.local.reading.misspellings import MEANT
from limner.hub.providers.local.writing import prose
from limner.hub.providers.local.writing.report import Suggestion, Type
from limner.hub.providers.local.writing.words import like

MISTAKES: tuple[Type, ...] = ("grammar", "repetition")
"""A word that stands twice is told as a repetition."""
NO_MISTAKE = "suggestion"
"""The severity of what is a matter of taste."""
ROUNDS = 3


def fixed(text: str) -> str:
    """The text with the likeliest wording for each mistake of spelling, grammar and doubled words.

    A spelling is a mistake when it is one in American and in British English: neither is turned into the other. What Harper has
    no wording for stays, and so does all of a text in another language. Behind its first few hundred mistakes a text stays
    as it is (prose.MAX_FINDINGS). Read again while something was corrected, ROUNDS times at most: one mistake may hide another.
    """
    for _ in range(ROUNDS):
        before = text
        text = _corrected(text)
        if text == before:
            break
    return text


def _corrected(text: str) -> str:
    american = prose.check(text, "american", types=MISTAKES).suggestions
    if not american:
        return text
    british = prose.check(text, "british", types=MISTAKES).suggestions
    fewer, more = (american, british) if len(american) <= len(british) else (british, american)
    for found in reversed(list(_of_both(fewer, more))):
        wording = _likeliest(found)
        if wording is not None and found.severity != NO_MISTAKE:
            text = text[: found.start] + wording + text[found.end :]
    return text


def _likeliest(found: Suggestion) -> str | None:
    """What a common misspelling is known to mean, else the first wording."""
    meant = MEANT.get(found.original.lower())
    return like(found.original, meant) if meant is not None else found.replacement


def _of_both(some: Iterable[Suggestion], others: Iterable[Suggestion]) -> Iterator[Suggestion]:
    """Those that overlap one of the others; both are in the text's order and without overlaps."""
    rest = iter(others)
    other = next(rest, None)
    for found in some:
        while other is not None and other.end <= found.start:
            other = next(rest, None)
        if other is not None and other.start < found.end:
            yield found
