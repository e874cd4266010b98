"""An HTTP server that need not behave: each answer is written by hand, byte for byte. It keeps what it was asked."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """`headers`: names in lower case, in order, as they came."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) < 2, f"{name} came {len(found)} times"
        return found[0] if found else None


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]
"""Writes the answer; the connection stays open when it returns."""


@dataclass
class Rogue:
    """`connections`: how many were accepted (and, with TLS, made); `raw_bytes`: what requests came; `gone`: a client left."""

    script: Script
    host: str = "127.0.0.1"
    scheme: str = "http"
    port: int = 0
    connections: int = 0
    raw_bytes: int = 0
    requests: list[Request] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await self._read(reader)
                self.requests.append(request)
                await self.script(request, writer)
                await writer.drain()
        self.gone.set()
        self.tasks.discard(task)
        writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        pairs = [line.split(":", 1) for line in lines]
        headers = [(name.lower(), value.strip()) for name, value in pairs]
        length = next((int(value) for name, value in headers if name == "content-length"), 0)
        body = await reader.readexactly(length)
        self.raw_bytes += len(head) + length
        method, path, _ = line.split(" ")
        return Request(method, path, headers, body)


def plain(status: int = 200, body: bytes = b"", *lines: str) -> bytes:
    """A proper answer with these header lines besides its length."""
    head = "\r\n".join([f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


def always(answer: bytes) -> Script:
    async def write(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return write


@asynccontextmanager
async def running(
    script: Script | bytes, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Rogue]:
    rogue = Rogue(always(script) if isinstance(script, bytes) else script, host, "https" if tls else "http")
    server = await asyncio.start_server(rogue.serve, host, port, ssl=tls, limit=2**20)
    rogue.port = server.sockets[0].getsockname()[1]
    try:
        yield rogue
    finally:
        server.close()
        for task in list(rogue.tasks):
            task.cancel()
