"""The check itself: Harper's findings and limner's own, settled into one list. Runs in CPU children only.

Harper (https://writewithharper.com, Apache-2.0) is a dictionary and some nine hundred rules, compiled in; it opens no file and no socket.
"""

import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import harper
from harper import Language, Lint, Linter, SuggestionKind

from limner.hub.providers.local.writing import names
from limner.hub.providers.local.writing.echoes import echoes
from limner.hub.providers.local.writing.parts import Part, shares
from limner.hub.providers.local.writing.readers import at_once
from limner.hub.providers.local.writing.report import MAX_SUGGESTIONS, Dialect, Report, Severity, Suggestion, Type
from limner.hub.providers.local.writing.slips import slips
from limner.hub.providers.local.writing.voice import passives
from limner.hub.providers.local.writing.wording import wordings
from limner.hub.providers.local.writing.words import Found, Word, split

MAX_FINDINGS = 1000
MAX_UNKNOWN = 300
"""Findings of Harper's, and different unknown words among them, before names are taken out: what such a word may have meant takes
5 to 20 ms to find out.
"""
MAX_DIALECTS = 2
"""Ready at a time: each remembers up to 2,000 pieces of sentences (250 MB in all), and takes 30 ms to make anew."""
MAX_SPAN = 300
MAX_EXPLANATION = 500
MAX_OTHERS = 4
PANICS = "pyo3_runtime"
MIN_WORDS = 20
FOREIGN = 0.4
"""A text of so many words, of which this share is unknown, is not English."""
SPELLING = "SpellCheck"
CAPITALS = "SentenceCapitalization"
OFF = (
    # wrong more often than right, or of no use
    "CompoundNouns",  # closes compounds that are two words: stone walls
    "Everyone",  # takes "every one of us" for everyone
    "LongSentences",  # the length of a sentence is no mistake, and covers those in it
    "MissingPreposition",  # proposes nothing
    "WrongNegative",  # hides plain misspellings: untill
    # a matter of taste, where both ways are right
    "DisjointPrefixes",  # non-zero, under way
    "NumericRangeEnDash",
    "OxfordComma",
    "UseEllipsisCharacter",
)
"""Rules of Harper's that are switched off."""
OFF_FROM = "Expand"
"""So are those that begin with this: whether an abbreviation is written out is a matter of taste too."""
TYPES: dict[str, Type] = {"Redundancy": "brevity", "Readability": "brevity"}
SEVERITIES: dict[str, Severity] = {
    "Capitalization": "warning",
    "Formatting": "warning",
    "Punctuation": "warning",
    "Regionalism": "warning",
    "Enhancement": "suggestion",
    "Readability": "suggestion",
    "Redundancy": "suggestion",
    "Style": "suggestion",
}
ORDER: tuple[Type, ...] = ("grammar", "cliche", "brevity", "repetition", "passive")
"""Of two that overlap, the first of these is told; within a type, the longer."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What Harper found in a part; `unknown`: the words (places in the whole text) its dictionary does not have."""

    part: Part
    found: list[Found] = field(default_factory=list)
    unknown: list[Found] = field(default_factory=list)


@dataclass(slots=True)
class _Findings:
    """What Harper found so far, before code point `end`; `different`: the unknown words, each once."""

    found: list[Found] = field(default_factory=list)
    unknown: list[Found] = field(default_factory=list)
    different: set[str] = field(default_factory=set)
    end: int = 0
    complete: bool = True
    foreign: bool = False

    def add(self, text: str, read: _Read) -> None:
        self.found += read.found
        self.unknown += read.unknown
        self.different.update(names.root(text[word.start : word.end]) for word in read.unknown)
        self.end = read.part.start + len(read.part.text)

    @property
    def are_enough(self) -> bool:
        return len(self.found) + len(self.unknown) >= MAX_FINDINGS or len(self.different) >= MAX_UNKNOWN


def check(
    text: str, dialect: Dialect = "american", ignore: Collection[str] = (), types: Collection[Type] = ()
) -> Report:
    """What may be better in a text, in its order.

    `ignore`: words that are right and rules (by name) that are not wanted, in upper or lower case; `types`: only these, all
    of them when empty. Raises KeyError for a dialect that is none of report.DIALECTS.
    """
    linters = _linters(dialect)
    with at_once(*shares(text), partial(_read_part, linters)) as reading:
        words = split(text)
        own = list(_own(text, words))
        findings = _gathered(reading, text, words)
    if findings.foreign:
        return Report((), "und", dialect, len(text), len(words), truncated=False)
    own = [finding for finding in own if finding.end <= findings.end]
    ignored = frozenset(word.casefold() for word in ignore)
    misspelt = _misspelt(linters[0], text, findings.unknown)
    wanted = [
        finding
        for finding in (*findings.found, *misspelt, *own)
        if (not types or finding.type in types) and _is_wanted(text, finding, ignored)
    ]
    settled = _settled(wanted)
    truncated = not findings.complete or len(settled) > MAX_SUGGESTIONS
    shown = tuple(_suggestions(text, settled[:MAX_SUGGESTIONS]))
    return Report(shown, "en", dialect, len(text), len(words), truncated)


@lru_cache(MAX_DIALECTS)
def _linters(dialect: Dialect) -> tuple[Linter, Linter]:
    """Harper for a dialect, once for each reader: the dictionary is loaded with the first, for most of a second, and shared by all."""
    return _linter(dialect), _linter(dialect)


def _linter(dialect: Dialect) -> Linter:
    linter = Linter(harper.Dialect[dialect.upper()])
    expanding = (rule for rule in linter.get_default_lint_config() if rule.startswith(OFF_FROM))
    linter.set_lint_config(dict.fromkeys((*OFF, *expanding), False))
    return linter


def _gathered(reading: Iterable[_Read], text: str, words: Sequence[Word]) -> _Findings:
    """What was found in part after part, until it is enough. How a text is shared makes no difference to where that is."""
    findings = _Findings()
    starts = [word.start for word in words]
    for read in reading:
        findings.add(text, read)
        if read.part.goes_on:
            continue
        known_of = bisect.bisect_left(starts, findings.end)
        if known_of >= MIN_WORDS and len(findings.unknown) > FOREIGN * known_of:
            findings.foreign = True
            break
        if findings.are_enough and findings.end < len(text):
            findings.complete = False
            break
    return findings


def _read_part(linters: Sequence[Linter], reader: int, part: Part) -> _Read:
    read = _Read(part)
    for rule, lints in _lints(linters[reader], part.text).items():
        for lint in lints:
            start, end = lint.span.start, lint.span.end
            if part.hides(start, end) or not 0 < end - start <= MAX_SPAN or _is_right(lint.problem_text):
                continue
            if rule == CAPITALS and start == 0 < part.start:
                continue  # the part may begin within a sentence
            (read.unknown if rule == SPELLING else read.found).append(_of_lint(rule, lint, part.start))
    return read


def _lints(linter: Linter, text: str) -> Mapping[str, Sequence[Lint]]:
    """Harper's findings by rule; none where it panics, which must not cost the rest of the text."""
    try:
        return linter.organized_lints(text, language=Language.PLAINTEXT)
    except BaseException as error:  # what Rust's panics become is no Exception, and could not be loaded by the parent
        if type(error).__module__ != PANICS:
            raise
        return {}


def _of_lint(rule: str, lint: Lint, offset: int) -> Found:
    """A finding of Harper's in limner's words."""
    original, kind = lint.problem_text, lint.lint_kind
    proposals = _proposals(lint)
    found: Type = "repetition" if _is_doubled(original) else TYPES.get(kind, "grammar")
    explanation = _spelling(original, proposals) if rule == SPELLING else lint.message[:MAX_EXPLANATION]
    return Found(
        found,
        SEVERITIES.get(kind, "error"),
        rule,
        lint.span.start + offset,
        lint.span.end + offset,
        proposals[0] if proposals else None,
        explanation,
        tuple(proposals[1 : 1 + MAX_OTHERS]),
    )


def _proposals(lint: Lint) -> list[str]:
    """What could stand in the place of the original, each wording once."""
    original = lint.problem_text
    wordings = (
        original + suggestion.replacement_text
        if suggestion.kind == SuggestionKind.INSERT_AFTER
        else suggestion.replacement_text
        for suggestion in lint.suggestions
    )
    return [wording for wording in dict.fromkeys(wordings) if wording != original]


def _is_right(original: str) -> bool:
    """What Harper takes for a mistake and is none: blanks that lay a text out, and the past perfect of "to have"."""
    return original.isspace() or original.casefold().split() == ["had", "had"]


def _is_doubled(original: str) -> bool:
    halves = original.casefold().split()
    return len(halves) > 1 and len(set(halves)) == 1


def _spelling(word: str, proposals: Sequence[str]) -> str:
    return f"“{word}” is not in the dictionary." + (f" Did you mean “{proposals[0]}”?" if proposals else "")


def _misspelt(linter: Linter, text: str, unknown: Iterable[Found]) -> Iterator[Found]:
    """Unknown words but for names, abbreviations and parts of identifiers."""
    unknown = list(unknown)
    seen = names.seen(text, [(finding.start, finding.end) for finding in unknown])
    for finding in unknown:
        if names.is_identifier(text, finding.start, finding.end):
            continue
        word = text[finding.start : finding.end]
        if names.root(word) in seen and not _is_near_a_name(linter, word, finding):
            continue
        yield finding


def _is_near_a_name(linter: Linter, word: str, finding: Found) -> bool:
    """Whether one slip of the finger makes a known name of it (Febuary), which in lower case is no word."""
    proposals = [text for text in (finding.replacement, *finding.others) if text and names.is_one_slip(word, text)]
    return any(_is_proper(linter, text) for text in proposals)


def _is_proper(linter: Linter, word: str) -> bool:
    found = linter.organized_lints(word.lower(), language=Language.PLAINTEXT, dedup=False)
    return bool(found.get(SPELLING))


def _own(text: str, words: Sequence[Word]) -> Iterator[Found]:
    yield from slips(text)
    yield from wordings(text, words)
    yield from passives(words)
    yield from echoes(text, words)


def _is_wanted(text: str, finding: Found, ignored: Collection[str]) -> bool:
    if names.splits(text, finding.start) or names.splits(text, finding.end):
        return False
    return finding.rule.casefold() not in ignored and text[finding.start : finding.end].casefold() not in ignored


def _settled(found: Iterable[Found]) -> list[Found]:
    """In the text's order, without overlaps."""
    kept: list[Found] = []
    starts: list[int] = []
    for finding in sorted(found, key=lambda f: (ORDER.index(f.type), f.start - f.end, f.start)):
        place = bisect.bisect_left(starts, finding.start)
        if place > 0 and kept[place - 1].end > finding.start:
            continue
        if place < len(kept) and kept[place].start < finding.end:
            continue
        kept.insert(place, finding)
        starts.insert(place, finding.start)
    return kept


def _suggestions(text: str, found: Iterable[Found]) -> Iterator[Suggestion]:
    # beyond U+FFFF a character takes two UTF-16 units
    wide = [] if text.isascii() else [place for place, character in enumerate(text) if character > "\uffff"]
    for f in found:
        utf16 = [place + bisect.bisect_left(wide, place) for place in (f.start, f.end)]
        yield Suggestion(
            f.type, f.severity, f.rule, text[f.start : f.end], f.replacement, f.others, f.explanation,
            f.start, f.end, utf16[0], utf16[1],
        )  # fmt: skip
