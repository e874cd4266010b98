"""A worker's loop inside the test's own process, and waiting for what it does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from limner.hub import loop as loop_module
from limner.hub.loop import LoopSettings, WorkerLoop
from limner.media.store import ObjectStore
from tests.hub.doubles import Shop


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs given back are found by the poll: these tests need not wait a second for it."""
    monkeypatch.setattr(loop_module, "POLL_S", 0.1)


@asynccontextmanager
async def working(
    shop: Shop, *, slots: int = 50, lease_s: float = 1.0, shutdown_s: float = 6.0
) -> AsyncIterator[WorkerLoop]:
    """A loop at work; stopped at the end, and it must come to an end."""
    loop = WorkerLoop(shop.resources, LoopSettings(slots, lease_s, lease_s / 3, shutdown_s))
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        loop.stop()
        await asyncio.wait_for(task, shutdown_s)


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> float:
    """Wait for it; the seconds it took."""
    began = time.monotonic()
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return time.monotonic() - began
        assert time.monotonic() - began < timeout_s, "it never came"
        await asyncio.sleep(0.005)


async def closed(shop: Shop, *job_ids: UUID, timeout_s: float = 20.0) -> list[Any]:
    async def all_closed() -> bool:
        return not any([(await shop.job(job_id)).is_open for job_id in job_ids])

    await until(all_closed, timeout_s)
    return [await shop.job(job_id) for job_id in job_ids]


class Slow(ObjectStore):
    """A store that takes its time over each write."""

    def __init__(self, home: Path, seconds: float) -> None:
        super().__init__(None, home)
        self._seconds = seconds
        self.writing = False

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        self.writing = True
        await asyncio.sleep(self._seconds)
        await super().put(key, data, media_type)
