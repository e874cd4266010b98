"""What a check can be asked and what it answers, as plain data. Imports nothing heavy: the API process loads this."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Type = Literal["grammar", "brevity", "cliche", "passive", "repetition"]
Severity = Literal["error", "warning", "suggestion"]
Dialect = Literal["american", "australian", "british", "canadian", "indian"]

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
TYPES: tuple[Type, ...] = get_args(Type)
MAX_CHARS = 100_000
MAX_IGNORED = 1000
MAX_IGNORED_CHARS = 100
MAX_SUGGESTIONS = 500
"""What follows them is not told: nobody reads on, and a job's output has a bound."""
CHECK = "limner.hub.providers.local.writing.prose:check"
"""The work's name for a CPU pool."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One thing that may be better: `original` is text[start:end], in code points.

    `replacement` "" takes it out; None: there is no wording that fits every such place. `others`: further wordings.
    """

    type: Type
    severity: Severity
    rule: str
    original: str
    replacement: str | None
    others: tuple[str, ...]
    explanation: str
    start: int
    end: int
    utf16_start: int
    utf16_end: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found, in the text's order, without overlaps.

    `language`: "en", or "und" (BCP 47: undetermined) where too many words are no English ones: then nothing is suggested.
    `truncated`: the text goes on behind the last suggestion, and was not checked to its end.
    """

    suggestions: tuple[Suggestion, ...]
    language: Literal["en", "und"]
    dialect: Dialect
    characters: int
    words: int
    truncated: bool


def body(report: Report) -> dict[str, Any]:
    """A report on the wire: of the HTTP API, of the command and of the job, alike."""
    return {
        "suggestions": [_told(suggestion) for suggestion in report.suggestions],
        "counts": counts(report.suggestions),
        "language": report.language,
        "dialect": report.dialect,
        "characters": report.characters,
        "words": report.words,
        "truncated": report.truncated,
    }


def counts(suggestions: Sequence[Suggestion]) -> dict[str, int]:
    """How many of each type, zeros included."""
    found = Counter(suggestion.type for suggestion in suggestions)
    return {kind: found[kind] for kind in TYPES}


def _told(suggestion: Suggestion) -> dict[str, Any]:
    return {
        "type": suggestion.type,
        "severity": suggestion.severity,
        "original": suggestion.original,
        "suggestion": suggestion.replacement,
        "alternatives": list(suggestion.others),
        "explanation": suggestion.explanation,
        "position": {"start": suggestion.start, "end": suggestion.end},
        "position_utf16": {"start": suggestion.utf16_start, "end": suggestion.utf16_end},
        "rule": suggestion.rule,
    }
