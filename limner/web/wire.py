"""HTTP/1.1 with bounds: uvicorn itself takes heads of any size and waits for clients for ever.

What a client may keep open, and for how long, is decided here, before there is a request; how large and how slow a
body may be that somebody reads, in `limner.web.middleware`.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import NoReturn

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from limner.telemetry import metrics
from limner.web import bodies

MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers, and of what stands between two pieces of a body; what arrives whole in one read
(at most 256 KiB) passes."""
MAX_HEADERS = 200
MAX_PIPELINED = 16
"""Requests waiting behind the one that is answered: one read holds 14,000, each of which would cost 3 KB."""
CLOSE_WITHIN_S = 10.0
"""Until a client that was hung up on has taken what is left for it."""
GRACE_S = 2.0
"""Beyond the time for a body: whoever reads it answers 408 by then (limner.web.middleware)."""
SWEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Connections of one process; seconds for a head, a body, an idle connection, and a client that takes no answer.

    `discard_bytes`: of a body that goes on after its answer was given.
    """

    connections: int
    head_within_s: float
    body_within_s: float
    idle_within_s: float
    send_within_s: float
    discard_bytes: int


def _raw(status: str, code: str, message: str, *more: str) -> bytes:
    body = orjson.dumps({"error": message, "code": code})
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *more]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


MALFORMED = _raw("400 Bad Request", "malformed_request", "This is not HTTP/1.1.")
UPGRADE = _raw(
    "400 Bad Request", "upgrade_not_available", "Send a body without Upgrade: this is HTTP/1.1 and stays it."
)
TOO_LARGE = _raw("431 Request Header Fields Too Large", "headers_too_large", "The headers are too large or too many.")
FULL = _raw("503 Service Unavailable", "too_many_connections", "Too many connections: try again.", "retry-after: 2")


class Refused(Exception):
    """Raised into the parser, which stops at it and calls `send_400_response`."""


class Connections:
    """The open connections of one server, no more than its limit; looked after once in SWEEP_S.

    At the limit the one that has been waiting longest for a request gives way to the new one: connections that were
    opened to say nothing keep nobody out. Only if every one is in the midst of a request is the new one refused.
    """

    def __init__(self, limits: WireLimits) -> None:
        self.limits = limits
        self.head_too_slow = _raw(
            "408 Request Timeout", "head_too_slow", f"The headers took more than {limits.head_within_s:g} s."
        )
        self._open: set[BoundedHttp] = set()
        self._waiting: dict[BoundedHttp, None] = {}  # in the order in which they began to
        self._sweep_s = min(SWEEP_S, *(limit / 4 for limit in _times(limits)))
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: "BoundedHttp") -> bool:
        """False: there is no room."""
        if len(self._open) >= self.limits.connections:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            self.busy(oldest)
            oldest.end("made_room")
        self._open.add(connection)
        self._waiting[connection] = None
        if self._timer is None:
            self._timer = connection.loop.call_later(self._sweep_s, self._sweep, connection.loop)
        return True

    def remove(self, connection: "BoundedHttp") -> None:
        """It is closed."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def busy(self, connection: "BoundedHttp") -> None:
        """It does not wait for a request any more."""
        self._waiting.pop(connection, None)

    def idle(self, connection: "BoundedHttp") -> None:
        """It waits for its next request."""
        self._waiting[connection] = None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.tend(now)
        self._timer = loop.call_later(self._sweep_s, self._sweep, loop) if self._open else None


def _times(limits: WireLimits) -> tuple[float, ...]:
    return (limits.head_within_s, limits.body_within_s, limits.idle_within_s, limits.send_within_s)


class BoundedHttp(HttpToolsProtocol):
    """One connection. A subclass made by `bounded` knows whose."""

    together: Connections

    _whole = False  # of the message that is arriving: both its head and its body
    _head_whole = False
    _unparsed_bytes = 0  # since the head began, or the last piece of a body
    _discarded_bytes = 0
    _refusal: tuple[bytes, str] | None = None
    _running: RequestResponseCycle | None = None  # is being answered; uvicorn's `cycle` is the last one read
    _arrives_by = math.inf
    _idle_until = math.inf
    _taken_by = math.inf
    _closed_by = math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.together.add(self):
            self._refuse(FULL, "full")
            return
        self._arrives_by = self.loop.time() + self.together.limits.head_within_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.together.remove(self)
        running = self._running
        super().connection_lost(exc)
        if running is not None and not running.response_complete:  # uvicorn tells the last request read, not this one
            running.disconnected = True
            running.message_event.set()

    # Arriving

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        too_many = self.headers is not None and len(self.headers) > MAX_HEADERS
        if too_many or self._unparsed_bytes > MAX_HEAD_BYTES:
            self._refuse(MALFORMED if self._head_whole else TOO_LARGE, "head_too_large")

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(MALFORMED, "too_many_pipelined")
        self._whole = self._head_whole = False
        self._unparsed_bytes = self._discarded_bytes = 0
        self._idle_until = math.inf
        self._arrives_by = self.loop.time() + self.together.limits.head_within_s
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # what follows a body is no header (RFC 9110, 6.5.1): it came past whoever looked at those
        if not self._head_whole:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            self._stop(TOO_LARGE, "head_too_large")
        upgrade = self.parser.should_upgrade()
        if upgrade and any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers):
            # the parser takes the body for another protocol's, and what comes then for a request
            self._stop(UPGRADE, "upgrade")
        self._head_whole = True
        self._unparsed_bytes = 0
        self._arrives_by = self.loop.time() + self.together.limits.body_within_s + GRACE_S
        self.together.busy(self)
        super().on_headers_complete()
        if upgrade:
            self.cycle.keep_alive = False
        if not self.pipeline:
            self._running = self.cycle

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > self.together.limits.discard_bytes:
                self.end("body_too_large")
                return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole = True
        self.scope["state"][bodies.HERE] = True
        self._arrives_by = math.inf
        super().on_message_complete()
        if self.cycle.response_complete and not self.pipeline:
            self._rest()

    # Answering

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        elif self._whole:
            self._rest()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._taken_by = self.loop.time() + self.together.limits.send_within_s
        super().pause_writing()

    def resume_writing(self) -> None:
        self._taken_by = math.inf
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's words for what the parser refused)
        self._refuse(*(self._refusal or (MALFORMED, "malformed")))

    # Ending

    def tend(self, now: float) -> None:
        """Hang up if a time is over."""
        if self.transport.is_closing():
            self._closed_by = min(self._closed_by, now + CLOSE_WITHIN_S)
            if now > self._closed_by:
                self.transport.abort()
        elif now > self._taken_by:
            self.end("answer_not_taken", abort=True)
        elif now > self._arrives_by and self._head_whole:
            self.end("body_too_slow")
        elif now > self._arrives_by:
            begun = self.headers is not None and not self._whole
            self._refuse(self.together.head_too_slow if begun else b"", "head_too_slow")
        elif now > self._idle_until:
            self.transport.close()

    def end(self, reason: str, *, abort: bool = False) -> None:
        """Hang up, and count why."""
        metrics.CONNECTIONS_ENDED.labels(reason).inc()
        (self.transport.abort if abort else self.transport.close)()

    def _rest(self) -> None:
        """Nothing is asked and nothing under way: from here on only a new request counts, not any byte."""
        if self.transport.is_closing():
            return
        self._idle_until = self.loop.time() + self.together.limits.idle_within_s
        self.together.idle(self)

    def _stop(self, answer: bytes, reason: str) -> NoReturn:
        """For the parser's callbacks: what is read of this connection ends here."""
        self._refusal = (answer, reason)
        raise Refused

    def _refuse(self, answer: bytes, reason: str) -> None:
        """Hang up, with this answer unless another one is due before it."""
        running = self._running
        if running is not None and not running.response_complete:
            if running is not self.cycle or self._whole or not self._head_whole or running.response_started:
                answer = b""
            running.disconnected = True  # it has its answer
            running.message_event.set()
        if answer:
            self.transport.write(answer)
        self.end(reason)


def bounded(connections: Connections) -> type[BoundedHttp]:
    """The protocol of one server, whose connections are counted together."""

    class Bounded(BoundedHttp):
        pass

    Bounded.together = connections
    return Bounded
