"""A provider's stream of server-sent events (WHATWG HTML §9.2), cut at the ends of events: what it says of itself is read on the way."""

import contextlib
import re
from typing import Any

import orjson

MAX_EVENT_BYTES = 4 * 1024 * 1024
END = re.compile(rb"\r?\n\r?\n")
DONE = b"[DONE]"
SO_FAR = b": usage "
"""Begins a comment with the counts so far, of an adapter that knows them before the end: for the books, and nobody else."""


class NotAStream(ValueError):
    """What came is no stream of events."""


class Frames:
    """Takes pieces as they come and gives whole events on. `keeps_usage`: whoever listens asked for the counts.

    `usage` is what the provider counted, `pieces` how many events had something of an answer in them, `done` whether it said so.
    """

    def __init__(self, *, keeps_usage: bool) -> None:
        self._keeps_usage = keeps_usage
        self._rest = b""
        self.usage: Any = None
        self._so_far: Any = None
        self.reference: str | None = None
        self.pieces = 0
        self.done = False
        self.failed: Any = None

    @property
    def counted(self) -> Any:
        """The counts to charge by: the last ones, else those so far of an answer that has begun."""
        return self._so_far if self.usage is None and self.pieces else self.usage

    def feed(self, piece: bytes) -> bytes:
        """The events that are whole now. Raises NotAStream for one without an end."""
        data = self._rest + piece
        ends = [found.end() for found in END.finditer(data)]
        if not ends:
            if len(data) > MAX_EVENT_BYTES:
                raise NotAStream
            self._rest = data
            return b""
        self._rest = data[ends[-1] :]
        kept, start = [], 0
        for end in ends:
            event = data[start:end]
            start = end
            if self._note(event):
                kept.append(event)
        return b"".join(kept)

    def _note(self, event: bytes) -> bool:
        """Read what is of interest; False for an event that nobody asked for."""
        if not event.startswith(b"data:"):
            if event.startswith(SO_FAR):
                with contextlib.suppress(ValueError):  # anybody may send such a comment
                    self._so_far = orjson.loads(event[len(SO_FAR) :])
            return not event.lstrip().startswith(b":")  # the provider's own comments mean nothing to a client
        body = event[5:].strip()
        if body == DONE:
            self.done = True
            return False  # said by whoever answers, once the counts are in the books
        if b'"usage"' in body or b'"error"' in body or self.reference is None:
            return self._read(body)
        self.pieces += 1
        return True

    def _read(self, body: bytes) -> bool:
        try:
            value = orjson.loads(body)
        except ValueError:
            raise NotAStream from None
        if not isinstance(value, dict):
            raise NotAStream
        if self.reference is None:
            found = value.get("id")
            self.reference = found[:200] if isinstance(found, str) else ""
        if value.get("error"):
            self.failed = value
            return False
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        if value.get("choices"):
            self.pieces += 1
            return True
        return self._keeps_usage or "choices" not in value
