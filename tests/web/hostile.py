"""Clients that mean harm: connections that are slow on purpose, and bodies made to be expensive. Each tells how it ended."""

import asyncio
import contextlib
import gzip
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from urllib.parse import urlsplit

import orjson

PAUSE_S = 0.1
GENERATE = "/api/v1/generate"
MIB = 1024 * 1024


@dataclass(frozen=True)
class Target:
    """A server; a key of one of its apps with an end user `ann`; an output's signed path."""

    url: str
    key: str
    media: str

    @property
    def address(self) -> tuple[str, int]:
        split = urlsplit(self.url)
        return split.hostname or "", split.port or 0

    def head(self, method: str, path: str, *headers: str, known: bool = True) -> bytes:
        """A request's head; of a caller with a key unless not `known`."""
        who = [f"X-API-Key: {self.key}", "X-User-ID: ann"] if known else []
        kind = (
            []
            if any(line.lower().startswith("content-type") for line in headers)
            else ["Content-Type: application/json"]
        )
        return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *who, *kind, *headers, "", ""]).encode()


@dataclass(frozen=True)
class End:
    """How a connection ended: what it was answered, and whether the server closed it before patience ran out."""

    kind: str
    statuses: tuple[int, ...]
    closed: bool

    @property
    def refused(self) -> bool:
        """Hung up on, or answered 4xx last."""
        return self.closed or (bool(self.statuses) and 400 <= self.statuses[-1] < 500)


Sends = Callable[[asyncio.StreamWriter], Awaitable[None]]
Attack = Callable[[float], Awaitable[End]]
"""Opens a connection that is to last as many seconds at most."""


async def attack(kind: str, target: Target, send: Sends, patience_s: float, *, reads: bool = True) -> End:
    """One connection: sends in its way until the server has had enough of it."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)
    await asyncio.get_running_loop().sock_connect(small, target.address)
    reader, writer = await asyncio.open_connection(sock=small, limit=4096)
    sending = asyncio.create_task(_until_gone(send, writer))
    got, closed = b"", False
    try:
        async with asyncio.timeout(patience_s):
            if not reads:  # the server's buffers fill; only its hanging up ends the sending
                await sending
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(65536):
                    got = (got + piece)[-MIB:]
            closed = True
    except TimeoutError:
        pass
    finally:
        sending.cancel()
        writer.transport.abort()
    return End(kind, tuple(int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)), closed)


async def _until_gone(send: Sends, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await send(writer)


# Slow


def _bytewise(start: bytes, rest: Iterator[bytes]) -> Sends:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        for piece in rest:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(PAUSE_S)

    return send


def slow(target: Target, number: int) -> list[Attack]:
    """So many slow connections of every kind, still to be opened: each takes how long it is ready to wait."""
    head = target.head("POST", GENERATE, "Content-Length: 9000")
    ways: dict[str, tuple[bytes, list[bytes]]] = {
        "silent": (b"", []),
        "head": (b"GET /api/v1/jobs HTTP/1.1\r\nX-A: ", [b"a"]),
        "lines": (b"GET /api/v1/jobs HTTP/1.1\r\n", [b"X-A: a\r\n"]),
        "blank lines": (b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", [b"\r\n"]),
        "body": (head + b'{"model": "', [b"a"]),
        "body of nobody's": (target.head("POST", GENERATE, "Content-Length: 9000", known=False), [b"a"]),
        "body nobody reads": (target.head("GET", "/healthz", "Content-Length: 9000"), [b"a"]),
        "chunks": (target.head("POST", "/api/v1/users/ann/tokens", "Transfer-Encoding: chunked"), [b"1\r\na\r\n"]),
        "trailers": (target.head("POST", GENERATE, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n", [b"X: y\r\n"]),
        "half of it": (target.head("POST", GENERATE, "Content-Length: 90000") + b" " * 80_000, []),
    }
    made: list[Attack] = [
        lambda patience, k=kind, s=start, p=pieces: attack(k, target, _bytewise(s, cycle(p)), patience)  # type: ignore[misc]
        for kind, (start, pieces) in islice(cycle(ways.items()), number - number // 10)
    ]
    greedy = _bytewise(target.head("GET", "/openapi.json") * 8, cycle([b"\r\n"]))
    never_reads: Attack = lambda patience: attack("takes no answer", target, greedy, patience, reads=False)  # noqa: E731
    return made + [never_reads] * (number // 10)


# Hostile bodies


def _json_bodies(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Bodies of one JSON endpoint that are expensive to read, or to refuse."""
    deep = rng.randrange(1_000, 400_000)
    digits = rng.randrange(1_000, 900_000)
    yield "deep lists", b"[" * deep + b"]" * deep
    yield "deep objects", b'{"a":' * (deep // 2) + b"1" + b"}" * (deep // 2)
    yield "deep inside", b'{"model":"local/canvas","input":{"prompt":' + b"[" * 900 + b"]" * 900 + b"}}"
    yield "huge integer", b'{"model":"local/canvas","input":{"prompt":"x","seed":' + b"9" * digits + b"}}"
    yield "huge exponent", b'{"amount":1e%d}' % digits
    yield "long fraction", b'{"amount":0.' + b"3" * digits + b"}"
    yield "not a number", b'{"amount":NaN}'
    yield "many values", b'{"model":"local/canvas","input":{"a":[' + b"{}," * rng.randrange(100_000, 300_000) + b"0]}}"
    yield "many fields", b"{" + b",".join(b'"%x":0' % n for n in range(rng.randrange(20_000, 80_000))) + b"}"
    yield "one field often", b"{" + b",".join([b'"model":"local/canvas"'] * 20_000) + b"}"
    yield "long names", orjson.dumps({"n" * rng.randrange(10_000, 900_000): 1})
    yield "zeros", b"\0" * rng.randrange(1_000, 900_000)
    yield "escapes", b'{"model":"' + b"\\u0000" * rng.randrange(1_000, 100_000) + b'"}'
    yield "half characters", b'{"model":"' + b"\\ud800" * 10_000 + b'"}'
    yield "no characters", b'{"model":"' + rng.randbytes(10_000) + b'"}'
    yield "packed", gzip.compress(b'{"amount":1}' + b" " * 20 * MIB)
    yield "megabytes of numbers", b'{"model":"local/canvas","input":{"prompt":"x","a":[' + b"0," * 2 * MIB + b"0]}}"
    yield "megabytes of texts", b'{"model":"local/canvas","input":{"prompt":"' + b'","":"' * MIB + b'"}}'
    yield "a long text", orjson.dumps({"model": "local/canvas", "input": {"prompt": "p" * 900_000}})
    yield "a long key", orjson.dumps({"amount": 1, "idempotency_key": "k" * 900_000})
    yield (
        "a bad picture",
        b'{"model":"local/describe","input":{"images":["data:image/png;base64,' + b"A" * 900_000 + b'"]}}',
    )


def _whole(target: Target, body: bytes, *headers: str) -> Sends:
    path = "/api/v1/users/ann/tokens" if b'"amount"' in body[:20] else GENERATE
    return _once(target.head("POST", path, f"Content-Length: {len(body)}", "Connection: close", *headers) + body)


def _once(*pieces: bytes) -> Sends:
    async def send(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return send


def _odd_requests(target: Target, rng: random.Random) -> Iterator[tuple[str, Sends]]:
    """Bodies whose frame lies, and heads made to be expensive."""
    grants = "/api/v1/users/ann/tokens"
    grant = b'{"amount":1}'
    form = "Content-Type: multipart/form-data; boundary=x"
    chunked = target.head("POST", grants, "Transfer-Encoding: chunked")
    nobodys = target.head("POST", grants, "Transfer-Encoding: chunked", known=False)
    piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    parts = b"".join(b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % n for n in range(20_000))
    yield "chunks without end", _endless(chunked, piece)
    yield "chunks without end of nobody's", _endless(nobodys, piece)
    yield "a part without end", _endless(target.head("POST", grants, "Transfer-Encoding: chunked", form), piece)
    yield "one chunk without end", _endless(chunked + b"fffffffffffffff\r\n", b"1" * 65536)
    yield "a chunk of a negative size", _once(chunked + b"-1\r\n")
    yield "a chunk of no size", _once(chunked + b"zz\r\nxx\r\n")
    yield "an extension without end", _endless(chunked + b"1;x=", b"a" * 65536)
    yield "a trailer without end", _endless(chunked + b"0\r\nX: ", b"a" * 65536)
    for length in (64 * MIB + 1, 10**40, len(grant) + 500, len(grant) - 7):
        yield f"a length of {length}", _once(target.head("POST", grants, f"Content-Length: {length}") + grant)
    yield "two lengths", _once(target.head("POST", grants, "Content-Length: 5", "Content-Length: 12") + grant)
    yield (
        "length and chunks",
        _once(target.head("POST", grants, "Content-Length: 12", "Transfer-Encoding: chunked") + grant),
    )
    for _ in range(5):
        yield (
            "most of a long body",
            _once(target.head("POST", GENERATE, f"Content-Length: {64 * MIB}"), *[b" " * MIB] * 50),
        )
    yield "an expectation", _once(target.head("POST", GENERATE, "Content-Length: 99", "Expect: 100-continue"))
    yield "packed and said so", _whole(target, gzip.compress(grant * 100_000), "Content-Encoding: gzip")
    yield "a form", _whole(target, b"amount=1", "Content-Type: application/x-www-form-urlencoded")
    yield "many parts", _whole(target, parts + b"--x--\r\n", form)
    yield from _odd_heads(target, rng)


def _odd_heads(target: Target, rng: random.Random) -> Iterator[tuple[str, Sends]]:
    ranges = "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(0, 10_000, 2))
    jobs = "/api/v1/jobs"
    for path in (target.media, "/docs/static/swagger-ui.css"):
        yield "many ranges", _once(target.head("GET", path, ranges, "Connection: close"))
        yield (
            "overlapping ranges",
            _once(target.head("GET", path, "Range: bytes=" + "0-," * 9_000 + "0-", "Connection: close")),
        )
    yield "many headers", _once(target.head("GET", jobs, *[f"X-{n}: 1" for n in range(5_000)]))
    yield "a long header", _once(target.head("GET", jobs, "X: " + "x" * 300_000))
    yield "a long target", _once(target.head("GET", f"{jobs}?" + "a=1&" * 100_000))
    yield "many parameters", _once(target.head("GET", f"{jobs}?limit=0&" + "a=1&" * 10_000, "Connection: close"))
    yield "many requests", _once(target.head("GET", jobs) * 400)
    yield "no http", _once(rng.randbytes(4_000) + b"\r\n\r\n")


def _endless(start: bytes, piece: bytes) -> Sends:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    return send


def bodies(target: Target, number: int, seed: int) -> list[Attack]:
    """So many hostile bodies of every kind, still to be sent."""
    rng = random.Random(seed)
    made: list[tuple[str, Sends]] = []
    while len(made) < number:
        made += list(_odd_requests(target, rng))
        made += [(kind, _whole(target, body)) for kind, body in _json_bodies(rng)]
    rng.shuffle(made)
    return [lambda patience, k=kind, s=send: attack(k, target, s, patience) for kind, send in made[:number]]  # type: ignore[misc]


async def ends(slow_ones: list[Attack], bodies: list[Attack], patience_s: float, at_once: int) -> list[End]:
    """How all of them ended: the slow ones together, the bodies `at_once`."""
    gate = asyncio.Semaphore(at_once)

    async def one(start: Attack) -> End:
        async with gate:
            return await start(patience_s)

    return await asyncio.gather(*(start(patience_s) for start in slow_ones), *(one(start) for start in bodies))
