"""Values of a JSON text, counted while it arrives."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.web.bodies import Values
from limner.web.errors import ApiError

TEXTS = st.text('[]{},:"\\\\ a', max_size=12)
JSON = st.recursive(
    st.none() | st.integers(0, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


def inside(value: Any) -> int:
    """Values that lists and objects hold; an empty one counts as if it held one."""
    if not isinstance(value, list | dict):
        return 0
    items = list(value.values() if isinstance(value, dict) else value)
    return max(len(items), 1) + sum(map(inside, items))


def see(pieces: list[bytes], limit: int) -> None:
    values = Values(limit)
    for piece in pieces:
        values.see(piece)


@given(JSON, st.data())
def test_ps14_values_are_counted_exactly_whatever_stands_in_texts_and_wherever_pieces_end(
    value: Any, data: st.DataObject
) -> None:
    text = orjson.dumps([value])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    number = inside([value])

    see(pieces, number)
    with pytest.raises(ApiError, match="Invalid input"):
        see(pieces, number - 1)


def test_ps14_texts_alone_are_values_too() -> None:
    """No JSON, yet each would be split off."""
    with pytest.raises(ApiError):
        see([b'"' * 4_002], 1_000)
