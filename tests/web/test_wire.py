"""What a client may keep open and for how long: limner's protocol around a small application, over real sockets."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from limner.web import wire
from tests.running import free_port
from tests.web import raw

LONG = 30.0
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass
class Behind:
    """The application: answers `ok`, or what its path asks for, and remembers what it was asked."""

    asked: list[dict[bytes, bytes]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    left: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(dict(scope["headers"]))
        match scope["path"]:
            case "/read":
                body = await self._body(receive)
                if body is None:
                    return
                self.bodies.append(body)
            case "/wait":
                await self.go_on.wait()
            case "/stream":
                await self._until_left(receive)
                return
        body = b"x" * 8_000_000 if scope["path"] == "/large" else b"ok"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def _until_left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left += 1

    async def _body(self, receive: Receive) -> bytes | None:
        body = b""
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += bytes(message.get("body", b""))
            if not message.get("more_body"):
                return body


@dataclass
class Served:
    port: int
    app: Behind

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def everything(self, *pieces: bytes, pause_s: float = 0.05, timeout_s: float = 10) -> bytes:
        """All that is answered until the server closes, while these pieces are sent one by one."""
        reader, writer = await self.open()

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause_s)

        sending = asyncio.create_task(send())
        got = b""
        try:
            async with asyncio.timeout(timeout_s):
                with contextlib.suppress(ConnectionError):
                    while piece := await reader.read(65536):
                        got += piece
        finally:
            sending.cancel()
            writer.close()
        return got


Serving = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """A server of limner's protocol with these limits; the rest of them are never reached."""
    running: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    async def serve(**limits: Any) -> Served:
        unreached: dict[str, Any] = {
            "connections": 1000, "head_within_s": LONG, "body_within_s": LONG, "idle_within_s": LONG,
            "send_within_s": LONG, "discard_bytes": 1_000_000,
        }  # fmt: skip
        served = Served(free_port(), Behind())
        protocol = wire.bounded(wire.Connections(wire.WireLimits(**unreached | limits)))
        config = uvicorn.Config(
            served.app, port=served.port, log_config=None, lifespan="off", http=protocol, ws="none", loop="uvloop"
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        running.append((server, asyncio.create_task(server.serve())))
        while not server.started:
            await asyncio.sleep(0.01)
        return served

    yield serve
    for server, task in running:
        server.should_exit = server.force_exit = True
        await task


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


# Heads


@pytest.mark.parametrize(
    ("trickle", "answers"),
    [(b"", []), (b"\r\n", []), (b"GET / HTTP/1.1\r\n", [408]), (GET + b"GET / HTTP/1.1\r\nX: ", [200, 408])],
)
async def test_a_head_that_never_ends_is_hung_up_on(serving: Serving, trickle: bytes, answers: list[int]) -> None:
    served = await serving(head_within_s=0.3)

    got = await served.everything(trickle, *[b"x" if trickle[-1:] == b" " else b""] * 100)

    assert statuses(got) == answers
    if answers[-1:] == [408]:
        assert b'"code":"head_too_slow"' in got


async def test_a_head_in_pieces_and_many_requests_on_one_connection_are_fine(serving: Serving) -> None:
    served = await serving(head_within_s=0.5, idle_within_s=0.5, body_within_s=0.5, send_within_s=0.5)
    reader, writer = await served.open()
    for _ in range(12):
        for piece in (b"POST /read HT", b"TP/1.1\r\nHo", b"st: h\r\nContent-Length: 4\r\n", b"\r\nab", b"cd"):
            writer.write(piece)
            await asyncio.sleep(0.02)
        assert (await raw.read(reader)).body == b"ok"
    writer.close()
    assert served.app.bodies == [b"abcd"] * 12


async def test_too_many_headers_are_refused(serving: Serving) -> None:
    served = await serving()
    for count in (wire.MAX_HEADERS - 1, wire.MAX_HEADERS):
        lines = [b"a:\r\n"] * count
        whole = await served.everything(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + b"".join(lines) + b"\r\n"
        )
        assert statuses(whole) == [431]
    few = await served.everything(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n" + b"a:\r\n" * 100 + b"\r\n"))
    assert statuses(few) == [200]
    unfinished = await served.everything(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 10_000)
    assert statuses(unfinished) == [431]


async def test_a_silent_connection_after_an_answer_ends_whatever_is_not_a_request(serving: Serving) -> None:
    served = await serving(idle_within_s=0.3)

    got = await served.everything(GET, *[b"\r\n"] * 100)

    assert statuses(got) == [200]


async def test_of_a_great_many_requests_at_once_only_a_few_are_taken(serving: Serving) -> None:
    served = await serving()

    await served.everything(GET.replace(b"/ ", b"/wait ") + GET * 5000)

    assert len(served.app.asked) <= 1


async def test_requests_that_wait_for_their_turn_are_answered_in_order(serving: Serving) -> None:
    served = await serving(idle_within_s=0.3)
    posts = [b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(9)]

    got = await served.everything(b"".join(posts))

    assert statuses(got) == [200] * 9
    assert served.app.bodies == [b"%d" % n for n in range(9)]


# Bodies


@pytest.mark.parametrize("path", [b"/", b"/read"])
async def test_a_body_that_never_ends_is_hung_up_on(
    serving: Serving, path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "GRACE_S", 0.1)
    served = await serving(body_within_s=0.3)

    got = await served.everything(
        b"POST " + path + b" HTTP/1.1\r\nHost: h\r\nContent-Length: 999\r\n\r\n", *[b"x"] * 200
    )

    assert statuses(got) == ([200] if path == b"/" else [])


async def test_a_body_that_goes_on_after_its_answer_is_taken_only_so_far(serving: Serving) -> None:
    served = await serving(discard_bytes=100_000)
    head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    reader, writer = await served.open()
    writer.write(head)

    assert (await raw.read(reader)).status == 200
    sent = 0
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            while sent < 100_000_000:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
    writer.close()
    assert sent < 50_000_000


TRAILED = b"POST /read HTTP/1.1\r\nHost: h\r\nX-User-ID: ann\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"


@pytest.mark.parametrize("apart", [False, True])
async def test_what_follows_a_body_is_never_taken_for_a_header(serving: Serving, apart: bool) -> None:
    """RFC 9110, 6.5.1: a proxy that looks at the headers has not seen these."""
    served = await serving(idle_within_s=0.3)
    trailer = b"X-User-ID: bob\r\nX-API-Key: stolen\r\n\r\n"

    got = await served.everything(*((TRAILED, trailer) if apart else (TRAILED + trailer,)))

    assert statuses(got) == [200]
    assert served.app.bodies == [b"ok"]
    assert served.app.asked[0][b"x-user-id"] == b"ann"
    assert b"x-api-key" not in served.app.asked[0]


@pytest.mark.parametrize("start", [TRAILED + b"X: ", TRAILED[: TRAILED.index(b"2\r\n")] + b"2;x="])
async def test_trailers_and_chunk_extensions_without_end_are_refused(serving: Serving, start: bytes) -> None:
    served = await serving()

    got = await served.everything(start, *[b"a" * 32_768] * 40, pause_s=0.001)

    assert statuses(got) in ([], [400])
    assert served.app.bodies == []


async def test_a_body_sent_with_an_upgrade_is_never_read_as_a_request(serving: Serving) -> None:
    served = await serving()
    head = b"POST /read HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(
        GET
    )

    got = await served.everything(head, GET)

    assert statuses(got) == [400]
    assert b'"code":"upgrade_not_available"' in got
    assert served.app.asked == []


async def test_an_upgrade_without_a_body_is_answered_as_http_1_1(serving: Serving) -> None:
    served = await serving()

    got = await served.everything(
        GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n") + GET, GET
    )

    assert statuses(got) == [200]
    assert b"connection: close" in got


# Answers


async def test_a_client_that_takes_nothing_of_its_answer_is_hung_up_on(serving: Serving) -> None:
    served = await serving(send_within_s=0.4)
    reader, writer = await served.open()
    for _ in range(4):
        writer.write(GET.replace(b"/ ", b"/large "))
    await asyncio.sleep(1.5)

    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(5):
            await reader.readexactly(4 * 8_000_000)
    writer.close()


async def test_who_left_is_told_to_the_request_that_runs_not_to_the_last_one_read(serving: Serving) -> None:
    served = await serving()
    _, writer = await served.open()
    writer.write(GET.replace(b"/ ", b"/stream ") + GET)
    while not served.app.asked:
        await asyncio.sleep(0.01)

    writer.close()

    async with asyncio.timeout(5):
        while not served.app.left:
            await asyncio.sleep(0.01)


# How many


async def test_at_the_limit_whoever_waited_longest_gives_way_to_a_new_connection(serving: Serving) -> None:
    served = await serving(connections=20)
    silent = [await served.open() for _ in range(20)]
    await asyncio.sleep(0.1)

    answers = [await served.everything(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) for _ in range(5)]

    assert [statuses(got) for got in answers] == [[200]] * 5
    async with asyncio.timeout(5):
        assert await silent[0][0].read() == b""
    silent[-1][1].write(GET)
    assert (await raw.read(silent[-1][0])).status == 200
    for _, writer in silent:
        writer.close()


async def test_a_new_connection_is_refused_only_when_every_other_one_is_at_work(serving: Serving) -> None:
    served = await serving(connections=10)
    busy = [await served.open() for _ in range(10)]
    for _, writer in busy:
        writer.write(GET.replace(b"/ ", b"/wait "))
    while len(served.app.asked) < 10:
        await asyncio.sleep(0.01)

    refused = await served.everything()

    assert statuses(refused) == [503]
    assert b"retry-after: 2" in refused
    assert b'"code":"too_many_connections"' in refused
    served.app.go_on.set()
    for reader, _ in busy:
        assert (await raw.read(reader)).status == 200
    again = await served.everything(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert statuses(again) == [200]
    for _, writer in busy:
        writer.close()
