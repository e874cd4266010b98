"""A request that is made ready early: nothing of it leaves, and no connection is made, before it may go."""

import asyncio

import pytest

from limner.egress.answers import ConnectFailed, TimedOut
from limner.egress.fixed import FixedDoor
from tests.emulators import rogue
from tests.emulators.rogue import Request, Rogue, plain

ALL = 1024


both = pytest.mark.parametrize("streams", [False, True])


def asked(
    door: FixedDoor, provider: Rogue, leave: asyncio.Future[None], *, streams: bool, timeout_s: float = 5.0
) -> asyncio.Task[bytes]:
    async def body() -> bytes:
        if not streams:
            request = door.request("POST", provider.origin, body=b"{}", timeout_s=timeout_s, max_bytes=ALL, leave=leave)
            return (await request).body
        async with door.stream(
            "POST", provider.origin, body=b"{}", timeout_s=timeout_s, idle_s=5, leave=leave
        ) as stream:
            return b"".join([piece async for piece in stream.chunks()])

    return asyncio.create_task(body())


@both
async def test_mj9_nothing_leaves_without_leave(provider: Rogue, door: FixedDoor, streams: bool) -> None:
    leave = asyncio.get_running_loop().create_future()
    task = asked(door, provider, leave, streams=streams)
    await asyncio.sleep(0.1)
    assert (provider.connections, provider.raw_bytes, task.done()) == (0, 0, False)

    leave.set_result(None)

    assert await task == b'{"ok": true}'
    assert [(one.method, one.body) for one in provider.requests] == [("POST", b"{}")]


@both
async def test_mj9_what_may_not_go_after_all_is_never_seen(provider: Rogue, door: FixedDoor, streams: bool) -> None:
    task = asked(door, provider, asyncio.get_running_loop().create_future(), streams=streams)
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await door.request("GET", provider.origin, timeout_s=5, max_bytes=ALL)

    assert task.cancelled()
    assert [one.method for one in provider.requests] == ["GET"]


@both
async def test_its_time_counts_from_its_leave(provider: Rogue, door: FixedDoor, streams: bool) -> None:
    leave = asyncio.get_running_loop().create_future()
    task = asked(door, provider, leave, streams=streams, timeout_s=1.0)
    await asyncio.sleep(1.2)
    leave.set_result(None)
    assert await task == b'{"ok": true}'

    async def silent(_: Request, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    provider.script = silent
    leave = asyncio.get_running_loop().create_future()
    task = asked(door, provider, leave, streams=streams, timeout_s=0.2)
    leave.set_result(None)
    with pytest.raises(TimedOut) as late:
        await task
    assert late.value.sent


@both
async def test_the_time_of_the_whole_counts_from_its_leave(provider: Rogue, door: FixedDoor, streams: bool) -> None:
    async def half(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{}")
        await asyncio.sleep(3600)

    provider.script = half
    leave = asyncio.get_running_loop().create_future()
    task = asked(door, provider, leave, streams=streams, timeout_s=0.3)
    await asyncio.sleep(0.5)
    leave.set_result(None)
    left_at = asyncio.get_running_loop().time()
    with pytest.raises(TimedOut):
        await task
    assert asyncio.get_running_loop().time() - left_at > 0.25


@both
async def test_a_failure_to_connect_is_told_as_ever(streams: bool) -> None:
    async with rogue.running(plain(200)) as gone:
        pass
    door = FixedDoor([], [gone.origin], {})
    leave = asyncio.get_running_loop().create_future()
    leave.set_result(None)
    with pytest.raises(ConnectFailed) as failed:
        await asked(door, gone, leave, streams=streams)
    await door.aclose()
    assert not failed.value.sent
