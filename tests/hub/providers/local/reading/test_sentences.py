"""Sentences: full stops that end one and full stops that do not, in prose, lists and other scripts."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.hub.providers.local.reading import sentences
from limner.hub.providers.local.reading.sentences import MAX_SENTENCE, split

ODD = [
    "“", "”", '"', "'", "...", "…", "e.g. ", "U.S. ", "Mr. ", "3.5", "\n", "\r\n", "\n\n", "- ", "1. ", "。", "？",
    "؟ ", "word ", "Word ", ". ", "! ", "\ud800",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ODD) | st.text(max_size=6), max_size=60).map("".join)


def texts(text: str) -> list[str]:
    return [sentence.text for sentence in split(text)]


@pytest.mark.parametrize(("text", "expected"), [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("Mr. Smith met Dr. Jones. They spoke.", ["Mr. Smith met Dr. Jones.", "They spoke."]),
    ("It costs 3.5 dollars. Cheap.", ["It costs 3.5 dollars.", "Cheap."]),
    ("Bring fruit, e.g. Braeburn apples. Then eat.", ["Bring fruit, e.g. Braeburn apples.", "Then eat."]),
    ("He left the U.S. Army in May. She stayed.", ["He left the U.S. Army in May.", "She stayed."]),
    ("He lives in the U.S. The house is big.", ["He lives in the U.S.", "The house is big."]),
    ("J. R. Tolkien wrote it. We read it.", ["J. R. Tolkien wrote it.", "We read it."]),
    ("He said no. Then he left.", ["He said no.", "Then he left."]),
    ("See No. 5 and fig. 3 first. Go on.", ["See No. 5 and fig. 3 first.", "Go on."]),
    ("Well ... maybe. Or not... Perhaps.", ["Well ... maybe.", "Or not...", "Perhaps."]),
    ("Wait… what is it? Ah… Good.", ["Wait… what is it?", "Ah…", "Good."]),
    ('He said, "It is late. We must go." Then he left.', ['He said, "It is late. We must go."', "Then he left."]),
    ("“Who is it?” she asked. Nobody spoke.", ["“Who is it?” she asked.", "Nobody spoke."]),
    ("It ended (at last). He slept.", ["It ended (at last).", "He slept."]),
    ("See example.com/a.b for more. Or call.", ["See example.com/a.b for more.", "Or call."]),
    ("We met at 5 p.m. It rained.", ["We met at 5 p.m.", "It rained."]),
    ("Apples, pears, etc. are fruit. Eat them.", ["Apples, pears, etc. are fruit.", "Eat them."]),
    ("今日は天気がいい。散歩に行く。「うん。行こう。」と言った。", ["今日は天気がいい。", "散歩に行く。", "「うん。行こう。」と言った。"]),
    ("我来了。你呢？很好！", ["我来了。", "你呢？", "很好！"]),
    ("مرحبا بالعالم. كيف الحال؟ بخير.", ["مرحبا بالعالم.", "كيف الحال؟", "بخير."]),
    ("i went home. it was late. we ate.", ["i went home.", "it was late.", "we ate."]),
])  # fmt: skip
def test_stops_that_end_a_sentence_and_stops_that_do_not(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_lines_that_are_wrapped_go_on_and_items_of_lists_do_not() -> None:
    text = (
        "A heading\n\nThis sentence was wrapped by an editor at sixty characters\nand goes on here. Next one.\n"
        "\n- first item\n- second item\n  goes on\n* third\n1. fourth\n2) fifth"
    )

    assert texts(text) == [
        "A heading", "This sentence was wrapped by an editor at sixty characters and goes on here.", "Next one.", "first item",
        "second item goes on", "third", "fourth", "fifth",
    ]  # fmt: skip


def test_what_has_no_letter_is_no_sentence() -> None:
    assert texts("*** --- !!! ... ???\n\n=====\n😀 😀") == []
    assert texts("") == []


def test_a_sentence_without_end_is_cut_between_words_and_a_word_without_end_anywhere() -> None:
    cut = texts("and so on it goes, " * 500)
    assert all(len(piece) <= MAX_SENTENCE and piece.endswith(",") for piece in cut)
    assert "".join(texts("x" * 10 * MAX_SENTENCE)) == "x" * 10 * MAX_SENTENCE


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_sentences_stand_in_the_text_in_order_and_lose_no_letter(text: str) -> None:
    found = split(text)

    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    for sentence in found:
        assert sentence.text == " ".join(text[sentence.start : sentence.end].split())
        assert 0 < sentence.end - sentence.start <= MAX_SENTENCE
    kept = {at for sentence in found for at in range(sentence.start, sentence.end)}
    lost = [at for at, character in enumerate(text) if character.isalpha() and at not in kept]
    lists = {match.start() + at for match in sentences.MARKER.finditer(text) for at in range(len(match[0]))}
    assert set(lost) <= lists, "only the markers of lists are left out"
