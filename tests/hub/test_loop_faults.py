"""Leases, heartbeats, wake-ups, and a database that goes away under a worker's loop."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from limner.db.wake import Waker
from limner.hub import loop as loop_module
from limner.hub import runs
from limner.hub.providers.base import ProviderError
from tests.conftest import Server
from tests.hub.doubles import Scripted, Shop, after, assert_settled, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone
from tests.hub.looping import closed, impatient, until, working

__all__ = ["db_alone", "impatient", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

OTHERS = "usename LIKE 'limner\\_%%' AND datname = current_database() AND pid <> pg_backend_pid()"


# Leases


async def test_mj7_a_worker_that_stood_still_may_take_its_own_job_again(shop: Open) -> None:
    """Its loop is blocked for longer than a lease; it finds its own job claimable, and the first run of it lost."""
    slow = Scripted("slow", after(0.4), after(0.2))
    here = await shop(slow)
    job_id = await here.submit()

    async with working(here) as loop:
        await until(lambda: slow.at_once == 1)
        time.sleep(1.3)
        (job,) = await closed(here, job_id)
        await until(lambda: loop.active == 0)

    assert job.state == "succeeded"
    assert job.finished_fence in {1, 2}
    await assert_settled(here, job_id)


async def test_mj7_a_worker_that_takes_a_job_over_from_itself_keeps_the_new_run_and_ends_the_old(
    shop: Open, superuser: psycopg.Connection
) -> None:
    """Both runs are of one job in one process: the old one's end must not take the new one's heartbeat with it."""
    slow = Scripted("slow", after(30), after(1.6))
    here = await shop(slow)
    job_id = await here.submit()
    lapse = "UPDATE limner.job_queue SET claimable_at = clock_timestamp() - interval '1 second' WHERE job_id = %s AND fence = 1"

    async with working(here, lease_s=0.9) as loop:
        await until(lambda: slow.at_once == 1)
        while superuser.execute(lapse, [job_id]).rowcount:
            await asyncio.sleep(0.12)  # a heartbeat may renew it before the claim finds it
        (job,) = await closed(here, job_id)
        assert loop.active == 0

    assert (job.state, job.finished_fence, len(slow.calls)) == ("succeeded", 2, 2)
    await assert_settled(here, job_id)


async def test_heartbeats_keep_a_long_run_for_many_leases(shop: Open) -> None:
    here = await shop(Scripted("slow", after(3.0)))
    job_id = await here.submit()

    async with working(here, lease_s=0.6), working(here, lease_s=0.6):
        (job,) = await closed(here, job_id)

    assert (job.finished_fence, len(here.providers[0].calls)) == (1, 1), "the other loop never got it"


async def test_a_heartbeat_connection_that_dies_is_replaced_in_time(shop: Open, superuser: psycopg.Connection) -> None:
    here = await shop(Scripted("slow", after(2.5)))
    job_id = await here.submit()

    async with working(here):
        for _ in range(3):
            await asyncio.sleep(0.7)
            superuser.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS} AND query LIKE '%%heartbeat_many%%'"
            )
        (job,) = await closed(here, job_id)

    assert (job.finished_fence, len(here.providers[0].calls)) == (1, 1)


async def test_a_worker_that_cannot_beat_stops_its_own_work_and_gives_it_back_uncounted(
    shop: Open, server: Server
) -> None:
    slow = Scripted("slow", after(30), text())
    here = await shop(slow)
    job_id = await here.submit()

    async with working(here, lease_s=0.6):
        await until(lambda: slow.at_once == 1)
        with away(server):
            await until(lambda: slow.at_once == 0, 8)
        (job,) = await closed(here, job_id)

    assert (job.state, job.finished_fence, job.runs) == ("succeeded", 2, 1)
    await assert_settled(here, job_id)


# A database that goes away


@contextmanager
def away(server: Server) -> Iterator[None]:
    """The database refuses everybody, and ends who is there; comes back at the end."""
    name = psycopg.conninfo.conninfo_to_dict(server.url)["dbname"]
    with psycopg.connect(server.embedded.superuser_conninfo(), autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        conn.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND usename LIKE 'limner%'"
        )
        try:
            yield
        finally:
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("phase", ["start", "intend", "finish", "release"])
async def test_mj5_a_database_that_goes_away_in_any_phase_costs_neither_the_job_nor_a_run(
    shop: Open, server: Server, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    down = ProviderError("provider_down", "Down.", "retryable")
    here = await shop(Scripted("only", down, text()) if phase == "release" else Scripted("only"))
    job_id = await here.submit()
    real = getattr(runs, phase)
    outages: list[asyncio.Task[None]] = []

    async def outage() -> None:
        with away(server):
            await asyncio.sleep(1.0)

    async def interrupted(*args: Any, **facts: Any) -> Any:
        if not outages:
            outages.append(asyncio.create_task(outage()))
            await asyncio.sleep(0.05)
        return await real(*args, **facts)

    async def leave_out(*_: Any) -> list[tuple[int, Any]]:
        return []

    monkeypatch.setattr(runs, "work_many", leave_out)
    monkeypatch.setattr(runs, phase, interrupted)
    async with working(here, lease_s=30) as loop:
        await until(lambda: bool(outages))
        await outages[0]
        (job,) = await closed(here, job_id, timeout_s=15)
        await until(lambda: loop.active == 0)

    assert (job.state, job.runs) == ("succeeded", 2 if phase == "release" else 1)
    assert len(here.providers[0].calls) == (2 if phase == "release" else 1)
    await assert_settled(here, job_id)


async def test_idle_connections_that_died_are_noticed_before_they_are_used(
    shop: Open, superuser: psycopg.Connection
) -> None:
    """After a restart every pooled connection is dead: the first jobs must not pay for it with a run each."""
    here = await shop(Scripted("only"))
    job_ids = [await here.submit() for _ in range(12)]
    async with working(here):
        await closed(here, *job_ids)  # pools have grown
        superuser.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
        await asyncio.sleep(0.1)
        job_ids = [await here.submit() for _ in range(12)]
        done = await closed(here, *job_ids)

    assert {(job.state, job.runs, job.finished_fence) for job in done} == {("succeeded", 1, 1)}


# Wake-ups


async def _pick_up_s(here: Shop, waker: Waker) -> float:
    before = len(here.providers[0].calls)
    await here.submit()
    began = time.monotonic()
    waker.wake()
    await until(lambda: len(here.providers[0].calls) > before)
    return time.monotonic() - began


async def test_a_wake_up_starts_a_job_at_once_and_the_poll_stands_behind_it(
    shop: Open, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "POLL_S", 1.0)
    here = await shop(Scripted("only"))
    waker = Waker(here.db, "limner_api")
    waking = asyncio.create_task(waker.run())
    listeners = f"SELECT pid FROM pg_stat_activity WHERE {OTHERS} AND query LIKE 'LISTEN%%'"
    async with working(here):
        await until(lambda: bool(superuser.execute(listeners).fetchall()))
        await asyncio.sleep(0.1)
        woken = sorted([await _pick_up_s(here, waker) for _ in range(10)])

        superuser.execute(f"SELECT pg_terminate_backend(pid) FROM ({listeners}) l")
        deaf = await _pick_up_s(here, waker)

        await until(lambda: bool(superuser.execute(listeners).fetchall()))
        await asyncio.sleep(0.1)
        again = min([await _pick_up_s(here, waker) for _ in range(5)])
    waking.cancel()

    assert woken[5] < 0.1, "half of them within a tenth of a second: nobody polled"
    assert deaf < 1.6, "the poll finds what no wake-up announced"
    assert again < 0.1, "it listens again"
