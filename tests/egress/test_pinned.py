"""Layers that stand behind the checks: the connection goes where it was said, or nothing is sent."""

import asyncio
import socket
import ssl
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
from aiohttp.abc import ResolveResult

from limner.egress import pinned
from limner.egress.answers import DestinationNotAllowed
from tests.egress import certificates
from tests.emulators import rogue


def _client(address: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=pinned.PinnedConnector(ip_address(address), ssl.create_default_context()))


async def test_ps3_every_name_is_the_one_address() -> None:
    async with rogue.running(rogue.plain(200, b"here"), "127.0.0.3") as server, _client("127.0.0.3") as client:
        for name in ("a.example.com", "localhost", "inside.example.com"):
            async with client.get(f"http://{name}:{server.port}/") as answer:
                assert await answer.read() == b"here"

    assert [request.header("host") for request in server.requests] == [
        f"{name}:{server.port}" for name in ("a.example.com", "localhost", "inside.example.com")
    ]


async def test_ps3_a_connection_to_another_address_is_dropped_before_a_byte_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the pin were broken: the peer's address alone is enough."""

    async def elsewhere(*_: object, **__: object) -> list[ResolveResult]:
        return [ResolveResult(hostname="a", host="127.0.0.1", port=server.port, family=2, proto=6, flags=0)]

    monkeypatch.setattr(pinned._OneAddress, "resolve", elsewhere)
    async with rogue.running(rogue.plain(200)) as server, _client("127.0.0.2") as client:
        with pytest.raises(DestinationNotAllowed):
            await client.post(f"http://a.example.com:{server.port}/", data=b"secret")

    assert (server.raw_bytes, server.requests) == (0, [])


async def test_ps3_an_address_in_the_url_does_not_get_around_the_pin() -> None:
    """aiohttp asks no resolver for addresses."""
    async with rogue.running(rogue.plain(200)) as server, _client("127.0.0.2") as client:
        with pytest.raises(DestinationNotAllowed):
            await client.get(server.origin)

    assert server.requests == []


def _answer_and_stay(listener: socket.socket, tls: ssl.SSLContext) -> None:
    """Serves one request, and then neither closes nor answers the end of TLS. Returns when the client is gone."""
    accepted, _ = listener.accept()
    secured = tls.wrap_socket(accepted, server_side=True)
    secured.recv(65_536)
    secured.sendall(rogue.plain(200, b"here"))
    with socket.socket(fileno=secured.detach()) as raw:
        raw.settimeout(10)
        with suppress(ConnectionError):
            while raw.recv(65_536):
                pass


async def test_ps14_a_peer_that_never_says_goodbye_is_left_at_once(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, "a.example.com")
    tls = ssl.create_default_context(cafile=str(made.authority))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = asyncio.create_task(asyncio.to_thread(_answer_and_stay, listener, certificates.server(made)))
        connector = pinned.PinnedConnector(ip_address("127.0.0.1"), tls)
        url = f"https://a.example.com:{listener.getsockname()[1]}/"
        async with aiohttp.ClientSession(connector=connector) as client, client.get(url) as answer:
            assert await answer.read() == b"here"

        await peer  # which would have waited in vain
