"""The CPU pool's promises: bounded time, memory and number; errors that travel; secrets that do not."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from limner.kit.cpu import CpuCrashed, CpuFailed, CpuMemory, CpuPool, CpuTimeout
from limner.media.sniffing import ImageRejected

ROOT = Path(__file__).parents[2]
INSPECT = "limner.media.images:inspect"


@pytest.fixture
async def pool() -> AsyncIterator[CpuPool]:
    pool = CpuPool(2, 2 << 30, 10)
    yield pool
    await pool.aclose()


async def test_results_and_domain_errors_come_back(pool: CpuPool) -> None:
    assert await pool.run("math:sqrt", 16) == 4.0
    with pytest.raises(ImageRejected) as caught:
        await pool.run(INSPECT, b"<svg>")
    assert (caught.value.code, str(caught.value)) == ("unsupported_media", caught.value.message)
    with pytest.raises(ZeroDivisionError):
        await pool.run("operator:truediv", 1, 0)


async def test_foreign_errors_are_told_in_words(pool: CpuPool) -> None:
    with pytest.raises(CpuFailed, match="JSONDecodeError"):
        await pool.run("json:loads", "{")


async def test_time_is_bounded_and_the_child_killed(pool: CpuPool) -> None:
    await pool.warm()
    before, start = pool.pids(), time.monotonic()

    with pytest.raises(CpuTimeout):
        await pool.run("time:sleep", 30, time_limit_s=0.1)

    assert time.monotonic() - start < 3
    assert len(before - pool.pids()) == 1
    assert await pool.run("math:sqrt", 4) == 2.0


async def test_memory_is_bounded_and_the_child_survives(pool: CpuPool) -> None:
    with pytest.raises(CpuMemory):
        await pool.run("builtins:bytearray", 3 << 30)
    assert len(await pool.run("builtins:bytearray", 1000)) == 1000


async def test_a_crash_is_told_and_replaced(pool: CpuPool) -> None:
    with pytest.raises(CpuCrashed):
        await pool.run("os:abort")
    assert await pool.run("math:sqrt", 9) == 3.0


async def test_cancelling_kills_the_child(pool: CpuPool) -> None:
    await pool.warm()
    task = asyncio.create_task(pool.run("time:sleep", 30))
    await asyncio.sleep(0.2)
    before = pool.pids()
    assert pool.busy == 1

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(before - pool.pids()) == 1
    assert pool.busy == 0


async def test_never_more_children_than_its_size(pool: CpuPool) -> None:
    seen = set(await asyncio.gather(*[pool.run("os:getpid") for _ in range(20)]))

    assert len(seen) <= 2
    assert pool.processes <= 2


async def test_the_child_is_nice_and_has_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_DATABASE_URL", "postgresql://secret-word")
    pool = CpuPool(1, 2 << 30, 10)
    await pool.run("time:sleep", 0)  # takes over an idle child or starts one
    idle = CpuPool(3, 2 << 30, 10)
    await idle.warm()  # at least one child is started after the variable was set

    for pid in idle.pids():
        assert b"secret-word" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert await pool.run("os:getenv", "LIMNER_DATABASE_URL") is None
    assert await pool.run("os:nice", 0) == os.nice(0) + 5
    await idle.aclose()
    await pool.aclose()


async def test_a_closed_pool_refuses(pool: CpuPool) -> None:
    await pool.warm()
    await pool.aclose()

    assert pool.processes == 0
    with pytest.raises(RuntimeError):
        await pool.run("math:sqrt", 4)


def test_the_main_script_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "no_guard.py"  # a script without a main guard would otherwise start itself for ever
    script.write_text(
        "import asyncio, sys\n"
        "from limner.kit.cpu import CpuPool\n"
        "print('started', file=sys.stderr)\n"
        "print(asyncio.run(CpuPool(1, 2 << 30, 5).run('math:sqrt', 25)), __file__)\n"
    )

    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout.split() == ["5.0", str(script)]
    assert done.stderr.count("started") == 1
