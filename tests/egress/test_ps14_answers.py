"""Answers without bounds, without end or without sense: none of them holds the door (PS14)."""

import asyncio
import gzip

import aiohttp
import pytest

from limner.egress import untrusted
from limner.egress.answers import AnswerTooLarge, ConnectionLost, TimedOut
from limner.egress.destinations import Destinations
from limner.egress.untrusted import UntrustedDoor
from tests.emulators import rogue
from tests.emulators.rogue import Request, Rogue, plain

HEADERS = {"content-type": "application/json"}
KIB = 1024


def door(server: Rogue) -> UntrustedDoor:
    return UntrustedDoor(Destinations([server.origin], []))


async def test_a_webhooks_answer_is_cut_at_64_kib() -> None:
    async with rogue.running(plain(200, b"x" * KIB * KIB)) as server:
        answer = await door(server).post(server.origin, headers=HEADERS, body=b"{}")

    assert len(answer.body) == 64 * KIB


@pytest.mark.parametrize("announced", [True, False])
async def test_an_import_that_is_too_large_is_refused_and_not_read_to_its_end(announced: bool) -> None:
    sent = 0

    async def endless(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        how = b"Content-Length: 99999999999" if announced else b"Transfer-Encoding: chunked"
        writer.write(b"HTTP/1.1 200 OK\r\n" + how + b"\r\n\r\n")
        while True:
            writer.write(b"x" * 1000 if announced else b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()
            sent += 1000

    async with rogue.running(endless) as server:
        with pytest.raises(AnswerTooLarge) as refused:
            await door(server).fetch(server.origin, max_bytes=5000)
        await asyncio.wait_for(server.gone.wait(), 10)

    assert refused.value.sent
    assert sent < 20 * KIB * KIB


async def test_an_import_is_never_larger_than_20_mib_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "FETCH_MAX_BYTES", 1000)
    async with rogue.running(plain(200, b"x" * 1001)) as server:
        with pytest.raises(AnswerTooLarge):
            await door(server).fetch(server.origin, max_bytes=10**9)
        assert len((await door(server).post(server.origin, headers=HEADERS, body=b"")).body) == 1001


async def test_ps14_a_compressed_answer_stays_as_small_as_it_came() -> None:
    bomb = gzip.compress(bytes(10 * KIB * KIB))
    async with rogue.running(plain(200, bomb, "Content-Encoding: gzip")) as server:
        answer = await door(server).fetch(server.origin, max_bytes=20 * KIB * KIB)

    assert server.requests[0].header("accept-encoding") == "identity"
    assert answer.body == bomb


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Long: " + "x" * 9 * KIB],
        [f"X-{number}: {'x' * KIB}" for number in range(40)],
        [f"X-{number}: x" for number in range(1000)],
        ["X" * 9 * KIB + ": x"],
        [f"X-{number}: {'x' * 8000}" for number in range(120)],
    ],
    ids=["a long one", "40 KiB together", "a thousand", "a long name", "a megabyte"],
)
async def test_ps14_headers_without_end_are_refused(lines: list[str]) -> None:
    async with rogue.running(plain(200, b"", *lines)) as server:
        with pytest.raises(AnswerTooLarge) as refused:
            await door(server).post(server.origin, headers=HEADERS, body=b"{}")
        await asyncio.wait_for(server.gone.wait(), 10)

    assert refused.value.sent


async def test_headers_below_32_kib_are_fine() -> None:
    lines = [f"X-{number}: {'x' * 1000}" for number in range(30)]
    async with rogue.running(plain(200, b"", *lines, "X-Odd: caf\u00e9")) as server:
        answer = await door(server).post(server.origin, headers=HEADERS, body=b"{}")

    assert answer.headers["x-29"] == "x" * 1000
    answer.headers["x-odd"].encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"+PONG\r\n",
        b"\x00\x01\x02\x03" * 100,
    ],
    ids=lambda answer: repr(answer[:60]),
)
async def test_an_answer_that_breaks_off_or_is_no_http_is_a_lost_connection(answer: bytes) -> None:
    async def hang_up(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with rogue.running(hang_up) as server:
        with pytest.raises(ConnectionLost) as lost:
            await door(server).fetch(server.origin, max_bytes=KIB * KIB)

    assert lost.value.sent


async def _silent(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _first_byte_late(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    await asyncio.sleep(3600)


async def _drop_by_drop(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    await _drops(writer)


async def _body_drop_by_drop(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    await _drops(writer)


async def _body_that_stops(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await asyncio.sleep(3600)


async def _hints_without_end(_: Request, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _drops(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("script", [_silent, _drop_by_drop, _body_drop_by_drop, _hints_without_end])
async def test_ps14_the_time_of_the_whole_ends_every_slow_answer(
    script: rogue.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted, "POST_S", 0.4)
    monkeypatch.setattr(untrusted, "FETCH_S", 0.4)
    async with rogue.running(script) as server:
        for asked in (
            door(server).post(server.origin, headers=HEADERS, body=b"{}"),
            door(server).fetch(server.origin, max_bytes=KIB * KIB),
        ):
            with pytest.raises(TimedOut) as late:
                await asked
            assert late.value.sent


@pytest.mark.parametrize("script", [_silent, _first_byte_late, _drop_by_drop, _hints_without_end])
async def test_ps14_a_server_that_does_not_begin_is_left_before_the_time_of_the_whole(
    script: rogue.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted, "CONNECT_S", 0.2)
    monkeypatch.setattr(untrusted, "SILENCE_S", 0.2)
    async with rogue.running(script) as server:
        with pytest.raises(TimedOut) as late:
            await asyncio.wait_for(door(server).fetch(server.origin, max_bytes=KIB), 10)

    assert late.value.sent


@pytest.mark.parametrize("script", [_silent, _body_that_stops])
async def test_ps14_a_server_that_falls_silent_is_left_before_the_time_of_the_whole(
    script: rogue.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted, "TIMEOUT", aiohttp.ClientTimeout(total=None, sock_read=0.3))
    async with rogue.running(script) as server:
        with pytest.raises(TimedOut) as late:
            await asyncio.wait_for(door(server).post(server.origin, headers=HEADERS, body=b"{}"), 10)

    assert late.value.sent
