"""A stream's pieces are the text, and its tokens are counted by a rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.hub.providers.local.reading.pieces import MAX_PIECE, pieces, tokens


@given(st.text() | st.text(alphabet=" \n\tab\u2003"))
def test_pieces_joined_are_the_text(text: str) -> None:
    found = pieces(text)

    assert "".join(found) == text
    assert all(0 < len(piece) <= 2 * MAX_PIECE for piece in found)


def test_a_piece_is_a_word_with_the_blanks_behind_it() -> None:
    assert pieces("One two,\n\nthree. ") == ["One ", "two,\n\n", "three. "]
    assert pieces("  a") == ["  ", "a"]
    assert pieces("") == []


@pytest.mark.parametrize(("text", "count"), [
    ("", 0), (" \n", 0), ("Hello, world!", 4), ("don't", 1), ("It’s 3.5 km.", 6), ("well-known", 3), ("今日は", 3), ("👩‍👩‍👧", 1),
    ("👍🏽 ok", 2),
    ("हिन्दी भाषा", 2), ("cafe\u0301", 1), ("x" * 20, 1), ("x" * 21, 2), ("x" * 200, 10), ("snake_case", 3), ("...", 3), ("\ud800", 1),
])  # fmt: skip
def test_words_and_marks_are_counted(text: str, count: int) -> None:
    assert tokens(text) == count


@given(st.text(max_size=300), st.text(max_size=300))
def test_what_stands_apart_is_counted_apart(one: str, other: str) -> None:
    assert tokens(f"{one}\n{other}") == tokens(one) + tokens(other)
    assert tokens(one) <= len(one)
