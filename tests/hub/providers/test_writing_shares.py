"""A text that two read at the same time: nothing is told otherwise than when one reads it from end to end."""

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import pytest

from limner.hub.providers.local.writing import parts, prose, readers
from limner.hub.providers.local.writing.report import Report
from tests.hub.providers.test_writing import ODD, hold_together
from tests.hub.providers.test_writing_corpus import CLEAN, CORPUS, MISTAKES

WRONG = [case["text"] for case in MISTAKES]
PARAGRAPHS = [paragraph for path in CLEAN for paragraph in path.read_text().split("\n\n")]
TALK = [
    '"I don\'t no," she said. "Your right."', "He said, “Its over.” “Whos there?” “Me.”", "The the cat (in a hat. Yes!) came.",
    "Wait... what?", "It was 5 pm. The the end!", "i has a apple.", "Two  spaces here.", "He “quoted this. And that.” Then gone.",
    'He went "there. Them.', "See http://example.org/" + "x" * 70 + " there.",
]  # fmt: skip
GERMAN = "Das Wetter ist heute sehr schön und wir gehen zusammen in den Park, weil die Kinder dort spielen wollen. "


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def in_one_share(text: str) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "shares", lambda text: (list(parts.parts(text)), ()))
        return prose.check(text)


@contextmanager
def cut_at(share: float) -> Iterator[None]:
    """The second share begins near this place (of 1), however short a text is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "FIRST_SHARE", share)
        patch.setattr(parts, "MIN_SHARED", 0)
        yield


def mixed(seed: int, size: int) -> str:
    """Right and wrong sentences, quotations, and what is no sentence, with all that may stand between them."""
    rng = random.Random(seed)
    kinds = (WRONG, WRONG, PARAGRAPHS, TALK, ODD)
    return "".join(
        rng.choice(rng.choice(kinds)) + rng.choice([" ", " ", "  ", "\n", "\n\n", "\r\n\r\n"]) for _ in range(size)
    )


@pytest.mark.parametrize("share", [0.1, 0.3, 0.47, 0.8])
def test_the_corpus_is_told_the_same_wherever_it_is_cut(share: float) -> None:
    whole = [path.read_text() for path in CLEAN]
    wrong = json.loads((CORPUS / "mistakes.json").read_text())
    texts = [*whole, " ".join(case["text"] for case in wrong), "\n\n".join(case["text"] for case in wrong)]

    for text in texts:
        with cut_at(share):
            report = prose.check(text)

        assert report == in_one_share(text)
        hold_together(text, report)


@pytest.mark.parametrize("seed", range(12))
def test_any_mixture_is_told_the_same_and_every_place_is_right(seed: int) -> None:
    for number in range(5):
        text = mixed(seed * 100 + number, 3 + 4 * number)
        with cut_at(random.Random(number).random()):
            report = prose.check(text)

        assert report == in_one_share(text), text
        hold_together(text, report)


def test_the_shares_are_the_parts_and_prose_is_cut_about_in_the_middle() -> None:
    for count in range(1, 12):
        text = "\n\n".join(PARAGRAPHS[:count])

        first, second = parts.shares(text)

        assert "".join(part.text for part in (*first, *second)) == text
        assert [part.start for part in second] == sorted(part.start for part in second)
        begins = second[0].start if second else len(text)
        assert 0.35 < begins / len(text) < 0.6 or len(text) < parts.MIN_SHARED, count
        assert len(second) > 0 or len(text) < parts.MIN_SHARED
        whole = {part.start for part in parts.parts(text)}
        assert len({part.start for part in (*first, *second)} - whole) <= 1


@pytest.mark.parametrize("text", [
    "He “said this. " + "And that it was so. " * 90, "We met Mr. Adeyemi and Dr. Jay, " * 50, "x" * 1900,
    'They went "home. ' + "Then it was late. " * 80,
])  # fmt: skip
def test_what_hangs_together_is_not_cut(text: str) -> None:
    """An open quotation, one sentence, no sentence at all: a part like these stays in one piece."""
    first, second = parts.shares(text)

    assert [part.start for part in (*first, *second) if part.start > 60] == []


def test_what_is_hidden_in_a_part_is_hidden_in_its_halves() -> None:
    run = "y" * 70
    [part] = parts.parts(f"It is {run} here. There is {run} and {run} too.")

    before, behind = part.cut(part.text.index("There"))

    assert before.text + behind.text == part.text
    for at in range(len(part.text)):
        half = behind if at >= behind.start else before
        assert half.hides(at - half.start, at - half.start + 1) == part.hides(at, at + 1)


def test_another_language_and_the_end_of_a_long_text_are_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    english = "\n\n".join(PARAGRAPHS[:6])
    texts = [
        GERMAN * 20,
        GERMAN * 7 + english[:1000],
        GERMAN * 4 + english,
        english + GERMAN * 60,
        "She don't know it. It is here. " * 200,
    ]
    for bound, size in (("MAX_FINDINGS", 1000), ("MAX_FINDINGS", 60), ("MAX_UNKNOWN", 20)):
        monkeypatch.setattr(prose, bound, size)
        reports = [prose.check(text) for text in texts]

        assert reports == [in_one_share(text) for text in texts]
        assert [report.language for report in reports[:2]] == ["und", "en"]


def test_with_one_processor_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = mixed(7, 60)
    report = prose.check(text)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)

    assert prose.check(text) == report


def test_the_second_share_is_read_by_another_at_the_same_time() -> None:
    first, second = parts.shares("\n\n".join(PARAGRAPHS[:12]))
    both_are_at_it = threading.Barrier(2, timeout=30)

    def read(reader: int, part: parts.Part) -> tuple[int, int]:
        if part.start in {first[0].start, second[0].start}:
            both_are_at_it.wait()
        return reader, part.start

    with readers.at_once(first, second, read) as reading:
        told = list(reading)

    assert told == [(0, part.start) for part in first] + [(1, part.start) for part in second]


def test_who_has_heard_enough_leaves_nobody_reading() -> None:
    many = list(islice(parts.parts("Nothing more is here. " * 5000), 40))
    ended: list[int] = []

    def read(reader: int, part: parts.Part) -> int:
        time.sleep(0.01)
        ended.append(part.start)
        return reader

    with readers.at_once(many[:20], many[20:], read) as reading:
        assert next(reading) == 0
    at_the_end = len(ended)
    time.sleep(0.1)

    assert len(ended) == at_the_end < 10


def test_what_goes_wrong_with_a_reader_is_told_and_the_next_text_is_read() -> None:
    first, second = parts.shares("\n\n".join(PARAGRAPHS[:12]))

    def read(reader: int, part: parts.Part) -> int:
        if reader == 1:
            raise MemoryError
        return reader

    with pytest.raises(MemoryError), readers.at_once(first, second, read) as reading:
        list(reading)

    assert prose.check(PARAGRAPHS[0]).language == "en"
