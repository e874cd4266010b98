"""Fixed phrases found in a text: clichés, and long ways to say something short."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from limner.hub.providers.local.writing import cliches, wordiness
from limner.hub.providers.local.writing.words import Found, Word, like

WILD = "*"
MAX_WILD = 3
OVERUSED = "A cliché: readers have met it so often that it says little. Say what is true here, in words of your own."
SHORTER = "Wordy: “{shorter}” says the same."
LEAVE_OUT = "Wordy: the sentence says the same without it."


@dataclass(frozen=True, slots=True)
class Phrase:
    """`tokens`: for each word the ones that may stand there; None: one to three of any. `shorter` None: a cliché."""

    tokens: tuple[frozenset[str] | None, ...]
    shorter: str | None


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The phrases that begin with a word, longest first: by the word that follows, and those for which any may follow."""

    by_next: Mapping[str, Sequence[Phrase]]
    others: Sequence[Phrase]

    def before(self, low: str) -> Sequence[Phrase]:
        return self.by_next.get(low, self.others)


def wordings(text: str, words: Sequence[Word]) -> Iterator[Found]:
    """Each phrase, the longest where several begin at a word, and none inside another one."""
    at = 0
    while at < len(words):
        end = None
        for phrase in _candidates(words, at):
            end = _end(phrase.tokens, words, at)
            if end is not None:
                yield _found(text, phrase, words[at].start, words[end].end)
                break
        at = at + 1 if end is None else end + 1


def _candidates(words: Sequence[Word], at: int) -> Sequence[Phrase]:
    beginning = _book().get(words[at].low)
    if beginning is None:
        return ()
    return beginning.before(words[at + 1].low if at + 1 < len(words) else "")


def _found(text: str, phrase: Phrase, start: int, end: int) -> Found:
    if phrase.shorter is None:
        return Found("cliche", "suggestion", "Cliche", start, end, None, OVERUSED)
    words = SHORTER.format(shorter=phrase.shorter) if phrase.shorter else LEAVE_OUT
    replacement = like(text[start:end], phrase.shorter)
    return Found("brevity", "suggestion", "WordyPhrase", start, end, replacement, words)


def _end(tokens: Sequence[frozenset[str] | None], words: Sequence[Word], at: int) -> int | None:
    """Where the tokens end that begin at this word, or None when they do not."""
    for place, token in enumerate(tokens):
        if at >= len(words) or (place > 0 and not words[at].joined):
            return None
        if token is None:
            rests = (_wild(tokens[place + 1 :], words, at, count) for count in range(1, MAX_WILD + 1))
            return next((end for end in rests if end is not None), None)
        if words[at].low not in token:
            return None
        at += 1
    return at - 1


def _wild(rest: Sequence[frozenset[str] | None], words: Sequence[Word], at: int, count: int) -> int | None:
    if at + count >= len(words) or not all(word.joined for word in words[at : at + count + 1]):
        return None
    return _end(rest, words, at + count)


@cache
def _book() -> Mapping[str, _Beginning]:
    """Every phrase by each word it may begin with."""
    book: dict[str, list[Phrase]] = defaultdict(list)
    for tokens, shorter in _read():
        first = tokens[0]
        assert first is not None, "a phrase begins with a word"
        for word in first:
            book[word].append(Phrase(tokens, shorter))
    return {word: _beginning(found) for word, found in book.items()}


def _beginning(phrases: Sequence[Phrase]) -> _Beginning:
    ordered = sorted(phrases, key=lambda phrase: len(phrase.tokens), reverse=True)
    seconds = [phrase.tokens[1] if len(phrase.tokens) > 1 else None for phrase in ordered]
    return _Beginning(
        {
            word: [phrase for phrase, second in zip(ordered, seconds, strict=True) if second is None or word in second]
            for word in frozenset().union(*(second for second in seconds if second is not None))
        },
        [phrase for phrase, second in zip(ordered, seconds, strict=True) if second is None],
    )


def _read() -> Iterator[tuple[tuple[frozenset[str] | None, ...], str | None]]:
    for phrase in cliches.CLICHES.split(";"):
        yield _tokens(phrase), None
    for line in wordiness.WORDY.strip().splitlines():
        phrase, _, shorter = line.partition("=")
        yield _tokens(phrase), shorter.strip()
    for line in wordiness.LIGHT_VERBS.strip().splitlines():
        phrase, _, plain = line.partition("=")
        light, _, rest = phrase.strip().partition(" ")
        for form, verb in zip(wordiness.VERB_FORMS[light], plain.split(), strict=True):
            yield _tokens(f"{form} {rest}"), verb


def _tokens(phrase: str) -> tuple[frozenset[str] | None, ...]:
    return tuple(None if token == WILD else frozenset(token.split("|")) for token in phrase.split())
