"""A bad line in front of any provider: it speaks HTTP/1.1, hands one request a connection on, and does harm when it is told to."""

import asyncio
import re
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["latency", "reset", "slow close", "stall", "500", "429", "garbage", "wrong key"]
FAULTS: tuple[Fault, ...] = ("latency", "reset", "slow close", "stall", "500", "429", "garbage", "wrong key")
LATENCY_S = 0.2
STALL_S = 30.0
REST_S = 1
SAID: dict[str, tuple[str, str, bytes]] = {
    "500": ("500 Internal Server Error", "", b'{"error": {"message": "oh"}}'),
    "429": ("429 Too Many Requests", f"Retry-After: {REST_S}\r\n", b'{"error": {"message": "slow down"}}'),
    "garbage": ("200 OK", "", b"\x00\xff<html>\xf0 not what was asked for"),
    "wrong key": ("401 Unauthorized", "", b'{"error": {"message": "who are you?"}}'),
}


class Toxic:
    """`fault` holds for each request that comes from now on; `arrived`: when each came, by time.monotonic."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        address = urlsplit(upstream)
        self._upstream = (address.hostname or "", address.port or 80)
        self.origin = ""
        self.fault: Fault | None = None
        self.arrived: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):  # the last: at the end of all
            request = await _read(reader)
            self.arrived.append(time.monotonic())
            await self._answer(request, writer)
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        fault = self.fault
        if fault in SAID:
            status, headers, body = SAID[fault]
            writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Type: application/json\r\nConnection: close\r\n"
                         f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
            return await writer.drain()
        if fault == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return writer.transport.abort()
        if fault == "stall":
            return await asyncio.sleep(STALL_S)
        if fault == "latency":
            await asyncio.sleep(LATENCY_S)
        answer = await self._ask(request)
        if fault == "slow close":  # all but its end, and then nothing
            writer.write(answer[:-4])
            await writer.drain()
            return await asyncio.sleep(STALL_S)
        writer.write(answer)
        return await writer.drain()

    async def _ask(self, request: bytes) -> bytes:
        """The answer of what stands behind, whole."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(re.sub(rb"\r\n", b"\r\nConnection: close\r\n", request, count=1))
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


@asynccontextmanager
async def in_front_of(upstream: str) -> AsyncIterator[Toxic]:
    """A line to this origin, at an origin of its own."""
    toxic = Toxic(upstream)
    server = await asyncio.start_server(toxic.serve, "127.0.0.1", 0)
    toxic.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield toxic
    finally:
        server.close()
