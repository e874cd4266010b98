"""Answers that come piece by piece through door 1."""

import asyncio

import pytest

from limner.egress.answers import AnswerTooLarge, ConnectionLost, EgressError, TimedOut
from limner.egress.fixed import FixedDoor
from tests.egress.keys import KEY, with_locals
from tests.emulators import rogue
from tests.emulators.rogue import Request, Rogue


async def _hang_up(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _silent(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _three_pieces(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(3):
        writer.write(b"8\r\ndata: %d\n\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.02)
    writer.write(b"0\r\n\r\n")


async def _one_piece_and_then_nothing(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    await asyncio.sleep(3600)


async def _pieces_for_ever(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"5\r\nagain\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _one_piece_and_gone(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    await writer.drain()
    writer.close()


async def test_a_stream_comes_piece_by_piece_and_its_connection_is_kept(provider: Rogue, door: FixedDoor) -> None:
    provider.script = _three_pieces
    for _ in range(2):
        async with door.stream("POST", provider.origin, body=b"{}", timeout_s=5, idle_s=2) as stream:
            pieces = [piece async for piece in stream.chunks()]

        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        assert b"".join(pieces) == b"data: 0\ndata: 1\ndata: 2\n"
        assert len(pieces) > 1

    assert provider.connections == 1
    assert provider.requests[0].header("authorization") == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("script", "timeout_s", "idle_s", "raised"),
    [
        (_one_piece_and_then_nothing, 30, 0.2, TimedOut),
        (_pieces_for_ever, 0.4, 0.3, TimedOut),
        (_one_piece_and_gone, 30, 5, ConnectionLost),
        (_silent, 30, 0.2, TimedOut),
        (_hang_up, 30, 5, ConnectionLost),
    ],
)
async def test_a_stream_that_ends_badly_says_how(
    provider: Rogue, door: FixedDoor, script: rogue.Script, timeout_s: float, idle_s: float, raised: type[EgressError]
) -> None:
    provider.script = script

    with pytest.raises(raised) as failed:
        async with door.stream("POST", provider.origin, body=b"{}", timeout_s=timeout_s, idle_s=idle_s) as stream:
            _ = [piece async for piece in stream.chunks()]

    assert failed.value.sent
    assert KEY not in with_locals(failed.value)


async def test_leaving_a_stream_ends_its_connection(provider: Rogue, door: FixedDoor) -> None:
    provider.script = _pieces_for_ever

    async with door.stream("GET", provider.origin, timeout_s=30, idle_s=5) as stream:
        async for piece in stream.chunks():
            assert piece.startswith(b"again")
            break

    await asyncio.wait_for(provider.gone.wait(), 10)


async def test_a_stream_has_a_largest_size(provider: Rogue, door: FixedDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.egress.fixed.STREAM_MAX_BYTES", 12)
    provider.script = _three_pieces

    with pytest.raises(AnswerTooLarge):
        async with door.stream("GET", provider.origin, timeout_s=5, idle_s=5) as stream:
            _ = [piece async for piece in stream.chunks()]
