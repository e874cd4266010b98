"""Slips of agreement that Harper lets pass: "me and him went", "there is many", "less students", "between you and I" and the like."""

import re
from collections.abc import Iterator

from limner.hub.providers.local.writing.words import Found, like, listed

SUBJECT = re.compile(
    r"(?:\A|(?<=[.!?] )|(?<=\n))(me|him|her|them|us) and (me|him|her|them|us|I|he|she|they|we|(?:my|his|her|our|their) [a-z]+)(?= [a-z])",
    re.IGNORECASE,
)
AS_SUBJECT = {"me": "I", "him": "he", "her": "she", "them": "they", "us": "we"}
MANY = "too many|so many|very many|many(?! an?\\b)|several|numerous|two|three|four|five|six|seven|eight|nine|ten|dozens of|hundreds of"
THERE_IS = re.compile(rf"\b(there)(?:'s|’s| is| was) (?=(?:{MANY})\b)", re.IGNORECASE)
BEFORE_LESS = (
    "have|has|had|with|are|were|need|needs|needed|use|uses|used|make|makes|made|get|gets|got|take|takes|took|see|saw|want"
    "|even|far|in|for"
)
PLURAL = r"people|children|men|women|[a-z]{2,}(?:ies|[bcdfgklmnprtvwy]s|[cs]hes|[dgklmnrtv]es)"
LESS = re.compile(rf"\b(?:{BEFORE_LESS}) (less) (?=(?:{PLURAL})\b)", re.IGNORECASE)
NO_COUNT = listed(
    """news sometimes always towards afterwards besides perhaps nowadays thanks arms means goods physics mathematics economics politics
    ethics statistics athletics genetics linguistics electronics gymnastics aerobics dynamics logistics classics series species does
    needs makes takes gets helps works comes goes costs looks seems sounds times"""
)
BETWEEN_I = re.compile(
    r"\bbetween (?:you|him|her|them|us|[A-Z][a-z]+) and (I|he|she|they|we)(?= ?[,.;!?]|$| is\b| was\b)", re.IGNORECASE
)
AS_OBJECT = {"i": "me", "he": "him", "she": "her", "they": "them", "we": "us"}
ONE = re.compile(
    r"(?:\A|(?<=[.!?] )|(?<=\n))(?:everyone|everybody|someone|somebody|nobody|no one) (have|are|were|do|don't|don’t)\b",
    re.IGNORECASE,
)
SINGULAR = {"have": "has", "are": "is", "were": "was", "do": "does", "don't": "doesn't", "don’t": "doesn’t"}
SEEN = re.compile(
    r"(?:\A|(?<=[.!?] )|(?<=\n)|(?<=[a-z], ))((I|we|they|he|she) (seen|done))(?= (?:it|that|this|the|a|an|him|her|them|my)\b)"
)
SAW = {"seen": "saw", "done": "did"}
FORWARD = re.compile(
    r"\blook(?:s|ed|ing)? forward to (meet|hear|see|receive|speak|join|read|visit|learn)\b", re.IGNORECASE
)
FORWARD_ING = {"receive": "receiving"}
NEXT = re.compile(r"[a-z]+", re.IGNORECASE)


def slips(text: str) -> Iterator[Found]:
    """Each slip with its repair."""
    yield from _subjects(text)
    yield from _there_is(text)
    yield from _less(text)
    yield from _objects(text)
    yield from _singulars(text)
    yield from _participles(text)


def _subjects(text: str) -> Iterator[Found]:
    for match in SUBJECT.finditer(text):
        first, second = (AS_SUBJECT.get(word.lower(), word) for word in match.groups())
        # the speaker comes last
        better = f"{second} and {first}" if first in {"I", "we"} else f"{first} and {second}"
        words = "The ones who act are I, he, she, we, they, not me, him, her, us, them."
        yield Found("grammar", "error", "SubjectPronouns", *match.span(), like(match[0], better), words)


def _there_is(text: str) -> Iterator[Found]:
    for match in THERE_IS.finditer(text):
        verb = "were" if " was" in match[0].lower() else "are"
        words = "Several things are there: the verb is plural."
        end = match.end() - 1
        yield Found("grammar", "error", "ThereIsMany", match.start(), end, like(match[0], f"there {verb}"), words)


def _less(text: str) -> Iterator[Found]:
    for match in LESS.finditer(text):
        noun = NEXT.match(text, match.end())
        if noun is None or noun[0].lower() in NO_COUNT:
            continue
        words = "What can be counted is fewer; less is for what cannot."
        yield Found("grammar", "warning", "LessFewer", *match.span(1), like(match[1], "fewer"), words)


def _objects(text: str) -> Iterator[Found]:
    for match in BETWEEN_I.finditer(text):
        words = "After “between” come me, him, her, us, them."
        yield Found("grammar", "error", "BetweenMe", *match.span(1), AS_OBJECT[match[1].lower()], words)


def _singulars(text: str) -> Iterator[Found]:
    for match in ONE.finditer(text):
        words = "Everyone, someone and nobody are singular."
        yield Found("grammar", "error", "EveryoneHas", *match.span(1), SINGULAR[match[1].lower()], words)


def _participles(text: str) -> Iterator[Found]:
    for match in SEEN.finditer(text):
        words = f"“{match[3]}” needs “have” before it; alone it is “{SAW[match[3]]}”."
        yield Found("grammar", "error", "SeenForSaw", *match.span(1), f"{match[2]} {SAW[match[3]]}", words)
    for match in FORWARD.finditer(text):
        verb = match[1].lower()
        words = "What one looks forward to is a thing or a doing: the verb ends in -ing."
        yield Found("grammar", "error", "LookForwardTo", *match.span(1), FORWARD_ING.get(verb, f"{verb}ing"), words)
