"""What a stream says of itself on the way: counts so far are kept for the books and from the client, whoever sends them."""

import pytest

from limner.hub.chat_stream import Frames

CHUNK = b'data: {"id": "a", "choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'


def test_counts_so_far_are_read_and_kept_from_the_client() -> None:
    frames = Frames(keeps_usage=True)

    before = frames.feed(b': usage {"prompt_tokens": 3, "completion_tokens": 1}\n\n'), frames.counted
    passed = frames.feed(CHUNK)

    assert before == (b"", None), "nothing was delivered yet"
    assert (passed, frames.usage, frames.counted) == (CHUNK, None, {"prompt_tokens": 3, "completion_tokens": 1})
    frames.feed(b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}\n\n')
    assert frames.counted["completion_tokens"] == 9


@pytest.mark.parametrize(
    "comment", [b": usage {", b": usage \xff", b": usage ", b": usage 7", b": usagex", b": keep-alive"]
)
def test_a_strangers_comment_breaks_nothing(comment: bytes) -> None:
    frames = Frames(keeps_usage=True)

    assert frames.feed(comment + b"\n\n" + CHUNK) == CHUNK
    assert (frames.pieces, frames.done, frames.failed) == (1, False, None)
