"""Request bodies while they arrive: how large, how slow, how many values, and how much of memory all of them may take together."""

import asyncio
import contextlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive

from limner.web.errors import ApiError, invalid

SMALL_BYTES = 64 * 1024
"""A body of at most this size is not counted: what most requests send goes on whatever the long ones do."""
COUNTED = b",[{"
"""One for each value in a list or object: a comma before it or, for the first, the bracket. An empty one has a bracket too."""
STRINGS_EACH = 2
"""Strings that a value may bring along: its name and itself."""
SHARE = 2
"""One organization holds at most this part of the whole (a half): the rest goes on for the others."""
RETRY_AFTER_S = 2
RUN_OUT_BYTES = 128 * 1024 * 1024
RUN_OUT_S = 10.0
PAUSE_S = 2.0
"""How much of a body that is refused for its size is thrown away before the answer, for how long, and how long nothing may come."""

HERE = "body_is_here"
"""In a request's state once the wire has all of its body: then nobody is waited for."""

State = MutableMapping[str, Any]


class BodyMemory:
    """Bytes of the bodies that this process holds at once, of all requests and of each organization's.

    A body that has arrived is held until its request is answered. Without this, clients that send most of a long body
    and then nothing would each keep it in memory for as long as a body may take. What is alone always passes: the limit
    of a single body is another one.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._of: dict[object, int] = {}

    def hold(self, state: State, size: int) -> None:
        """The request of this state has `size` bytes now. Raises ApiError 429 `too_many_bodies`, 503 `unavailable`."""
        if size <= SMALL_BYTES:
            return
        owner, before = state.get("held", (state.get("log", {}).get("org"), 0))
        own, others = self._of.get(owner, 0) - before, self._held_bytes - before
        if own and own + size > self._limit_bytes // SHARE:
            raise _refusal(429, "too_many_bodies", "Too many long bodies of yours are under way: try again.")
        if others and others + size > self._limit_bytes:
            raise _refusal(503, "unavailable", "Too many long bodies are under way: try again.")
        self._of[owner] = own + size
        self._held_bytes = others + size
        state["held"] = (owner, size)

    def release(self, state: State) -> None:
        """The request is over."""
        if "held" not in state:
            return
        owner, size = state.pop("held")
        self._held_bytes -= size
        self._of[owner] -= size
        if not self._of[owner]:
            del self._of[owner]


class Values:
    """The values of a JSON text, counted piece by piece while it arrives, by whole-piece operations only.

    A parse goes on in one piece and holds up everybody else: 200,000 empty objects take 25 ms and 60 MB of them would be
    1.8 GB of objects; as many bytes of one text (a picture) take a hundredth of that.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values = 0
        self._quotes = 0
        self._escaping = False

    def see(self, piece: bytes) -> None:
        """The text goes on with this piece. Raises ApiError 400 as soon as it holds more values than the limit."""
        if self._escaping:
            piece = b"\\" + piece
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"")
            self._escaping = piece.endswith(b"\\")
            piece = piece.replace(b'\\"', b"")
        else:
            self._escaping = False
        quotes = piece.count(b'"')
        inside, self._quotes = self._quotes % 2, self._quotes + quotes
        if self._quotes <= 2 * STRINGS_EACH * self._limit:
            outside = b"".join(piece.split(b'"')[inside::2]) if quotes else b"" if inside else piece
            self._values += len(outside) - len(outside.translate(None, COUNTED))
            if self._values <= self._limit:
                return
        raise invalid({"": [f"holds more than {self._limit} values"]})


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """What holds for every body of a process: seconds until it is whole, values in a long JSON text, memory of all together."""

    within_s: float
    values: int
    memory: BodyMemory


class Arriving:
    """ASGI's `receive` for one request: a body of at most `limit` bytes, whole within `within_s` of the first look at it.

    `state`: the request's, where the wire says that it has all of the body.
    """

    __slots__ = ("_by", "_limit", "_receive", "_seen", "_state", "_within_s", "whole")

    def __init__(self, receive: Receive, state: Mapping[str, Any], limit: int, within_s: float) -> None:
        self._receive = receive
        self._state = state
        self._limit = limit
        self._within_s = within_s
        self._by: float | None = None
        self._seen = 0
        self.whole = False

    async def __call__(self) -> Message:
        """Raises ApiError 408, 413."""
        if self.whole:  # then whoever asks waits for the client to leave
            return await self._receive()
        message = await (self._receive() if HERE in self._state else self._in_time())
        self.whole = not message.get("more_body", False)
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                raise too_large(self._limit)
        return message

    async def _in_time(self) -> Message:
        if self._by is None:
            self._by = asyncio.get_running_loop().time() + self._within_s
        try:
            async with asyncio.timeout_at(self._by):
                return await self._receive()
        except TimeoutError:
            raise ApiError(
                408, "body_too_slow", f"The body took more than {self._within_s:g} s.", headers={"connection": "close"}
            ) from None


async def run_out(receive: Receive) -> None:
    """Throw away what still comes of a body that is refused for its size, within bounds.

    Who is still sending when the connection closes is reset, and never reads why: OpenAI's clients would send all of it again.
    """
    left = RUN_OUT_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RUN_OUT_S):
            while left > 0:
                async with asyncio.timeout(PAUSE_S):
                    message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


def _refusal(status: int, code: str, message: str) -> ApiError:
    headers = {"retry-after": str(RETRY_AFTER_S), "connection": "close"}
    return ApiError(status, code, message, extra={"retry_after": RETRY_AFTER_S}, headers=headers)


def too_large(limit: int) -> ApiError:
    """413 that says how large a body may be, in bytes."""
    return ApiError(
        413, "body_too_large", f"The body is larger than {limit} bytes.", extra={"limit_bytes": limit},
        headers={"connection": "close"},
    )  # fmt: skip
