"""The worker's loop over a real database: how much it takes, cancels, mistakes, and leaving."""

import asyncio
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from limner.db.pools import Database
from limner.hub import endings
from limner.hub import loop as loop_module
from limner.hub.loop import RARELY, CpuUse, LoopSettings, WorkerLoop
from limner.hub.providers.base import ProviderCall, ProviderError, ProviderResult
from limner.hub.sharing import SharedWrites
from limner.kit.cpu import CpuPool
from limner.kit.money import MC
from limner.tenancy import apps
from tests import acts
from tests.conftest import Tenant
from tests.hub.doubles import Scripted, Shop, after, assert_settled, counted, open_shop, pictures, png, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone
from tests.hub.looping import Slow, closed, impatient, until, working

__all__ = ["db_alone", "impatient", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]


async def test_two_hundred_slow_provider_calls_run_at_once(shop: Open) -> None:
    slow = Scripted("slow", after(2.0))
    here = await shop(slow)
    job_ids = [await here.submit() for _ in range(200)]
    began = time.monotonic()

    async with working(here, slots=200, lease_s=2.0):
        await until(lambda: slow.peak == 200, 15)
        await closed(here, *job_ids)

    assert time.monotonic() - began < 15, "one after another would take 400 s"
    assert len(slow.calls) == 200
    assert await acts.books(here.db, here.tenant.org_id) == {}


async def test_a_worker_whose_claims_are_slow_does_all_the_same(shop: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is older than all that was ready when it looked last."""
    monkeypatch.setattr(loop_module, "SLOW_S", 0.0)
    monkeypatch.setattr(loop_module, "WHOLE_EVERY_S", 0.5)
    here = await shop(Scripted("quick", after(0.0)))

    async with working(here):
        for place in range(10):
            late = UUID(int=(0x01900000 << 96) + (7 << 76) + (1 << 63) + secrets.randbits(60)) if place == 5 else None
            await closed(here, await here.submit(job_id=late))

    assert await acts.books(here.db, here.tenant.org_id) == {}


async def test_slots_bound_what_is_taken(shop: Open) -> None:
    slow = Scripted("slow", after(0.1))
    here = await shop(slow)
    job_ids = [await here.submit() for _ in range(20)]

    async with working(here, slots=4):
        await closed(here, *job_ids)

    assert slow.peak == 4


async def test_busy_cpu_children_stop_neither_heartbeats_nor_waiting_for_providers(shop: Open, pool: CpuPool) -> None:
    """All CPU children are busy for longer than a lease: nothing is lost, and another provider's call starts at once."""

    async def compute(call: ProviderCall) -> ProviderResult:
        await pool.run("time:sleep", 0.8)
        return text()

    cpu, remote = Scripted("cpu", compute), Scripted("remote", after(0.05))
    local = await shop(cpu)
    distant = await open_shop(local.db, local.tenant, local.resources.store, pool, remote)
    both = Shop(local.db, local.tenant, local.model_id, local.resources, (cpu, remote))
    local.resources.adapters["remote"] = remote  # type: ignore[index]
    heavy = [await local.submit() for _ in range(4)]
    lost = counted("leases_lost")

    async with working(both, lease_s=1.0):
        await until(lambda: cpu.at_once == 4)
        light = await distant.submit()
        (job,) = await closed(distant, light, timeout_s=3)
        assert job.provider_used == "remote"
        assert any([(await local.job(job_id)).is_open for job_id in heavy]), "it waited for the CPU work"
        await closed(local, *heavy)

    assert counted("leases_lost") == lost
    assert [(await local.job(job_id)).runs for job_id in heavy] == [1, 1, 1, 1]


async def test_prototype_one_apps_backlog_does_not_starve_another_app(
    shop: Open, pool: CpuPool, db: Database, tenant: Tenant
) -> None:
    """The prototype's queue is first come, first served for everybody: 200 jobs of one app stand before another's first."""

    async def compute(call: ProviderCall) -> ProviderResult:
        await pool.run("time:sleep", 0.02)
        return text()

    here = await shop(Scripted("cpu", compute))
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        other = await apps.create(tx, "other", "Other", actor="test", welcome_mc=10 * MC)
    backlog = [await here.submit() for _ in range(100)]

    async with working(here, slots=200):
        await until(lambda: len(here.providers[0].calls) > 5)
        mine = await here.submit(app_id=other.id, user="bea")
        async with db.tenant_tx(tenant.org_id) as tx:

            async def done() -> int:
                row = await tx.get(
                    "SELECT count(*) AS n FROM limner.job WHERE id = %s AND finished_at IS NOT NULL", [mine]
                )
                return int(row["n"])

            await until(done)
        finished = [job for job in [await here.job(job_id) for job_id in backlog] if not job.is_open]
        assert len(finished) < 45, "the other app's only job waited for most of the backlog"
        await closed(here, *backlog)


async def test_work_that_waits_for_the_cpu_stays_in_the_queue(shop: Open, pool: CpuPool) -> None:
    """Two hundred slots, one child: what cannot be worked on is left for other workers, with its pictures."""

    async def compute(call: ProviderCall) -> ProviderResult:
        await pool.run("time:sleep", 0.03)
        return text()

    here = await shop(Scripted("cpu", compute))
    job_ids = [await here.submit() for _ in range(60)]

    held = 0
    async with working(here, slots=200) as loop:
        while (await here.job(job_ids[-1])).is_open:
            held = max(held, loop.active)
            await asyncio.sleep(0.01)
        await closed(here, *job_ids)

    assert held < 30, f"{held} of 60 jobs sat in one worker with one child"


def test_the_use_of_the_cpu_is_the_mean_of_calls_by_ended_run() -> None:
    several, few, steady = CpuUse(100), CpuUse(0), CpuUse(0)

    for ending in range(200):
        several.ended(100 + 3 * (ending + 1))  # three pieces a run
        few.ended(5 * (ending // 100 + 1))  # five pieces at the same moment, once in a hundred runs
        steady.ended(20 * (ending // 20 + 1))  # one a run, all of which are asked for before the first of twenty ends

    assert several.a_run == pytest.approx(3, abs=0.01)
    assert few.a_run < RARELY
    assert 0.5 < steady.a_run < 2


async def test_an_adapter_that_breaks_again_and_again_ends_the_job_not_the_worker(shop: Open) -> None:
    here = await shop(Scripted("broken", KeyError("x")), backoff_s=0.02)
    job_id = await here.submit()

    async with working(here):
        (job,) = await closed(here, job_id)

    assert (job.state, job.error_code, job.runs, job.price_final_mc) == ("failed", "adapter_error", 3, 0)


async def test_our_own_mistake_is_tried_again_and_then_ends_the_job(
    shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await shop(Scripted("good"), backoff_s=0.02)
    job_id = await here.submit()

    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(SharedWrites, "intend", broken)
    async with working(here) as loop:
        (job,) = await closed(here, job_id)
        await until(lambda: loop.active == 0)

    assert (job.state, job.error_code, job.runs) == ("failed", "internal_error", 3)


async def test_what_the_database_refuses_to_settle_ends_the_job_all_the_same(
    shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await shop(Scripted("good"), backoff_s=0.02)
    job_id = await here.submit()
    real = endings.success

    def absurd(*facts: Any) -> endings.Finish:
        closing = real(*facts)
        return replace(closing, charge_mc=closing.charge_mc * 50)

    monkeypatch.setattr(endings, "success", absurd)
    async with working(here):
        (job,) = await closed(here, job_id)

    assert (job.state, job.error_code, job.price_final_mc) == ("failed", "internal_error", 0)


# Cancels


async def test_mj10_a_running_job_is_told_at_the_next_heartbeat(shop: Open) -> None:
    slow = Scripted("slow", after(30))
    here = await shop(slow)
    job_id = await here.submit()

    async with working(here):
        await until(lambda: slow.at_once == 1)
        assert await acts.cancel(here.db, here.tenant, job_id) == "requested"
        took_s = await until(lambda: slow.at_once == 0)
        (job,) = await closed(here, job_id)

    assert took_s < 1.0
    assert (job.state, job.error_code, job.price_final_mc) == ("cancelled", "cancelled", 0)
    assert await here.events(job_id) == ["job.started", "job.cancelled"]


async def test_mj10_a_result_that_came_first_is_kept_and_charged(shop: Open, tmp_path: Path) -> None:
    """The provider has answered, its picture is being stored for longer than a heartbeat, and the owner cancels."""
    store = Slow(tmp_path, 1.2)
    here = await shop(Scripted("quick", pictures(png())), store=store)
    job_id = await here.submit()

    async with working(here):
        await until(lambda: store.writing)
        assert await acts.cancel(here.db, here.tenant, job_id) == "requested"
        (job,) = await closed(here, job_id)

    assert (job.state, job.price_final_mc, job.runs) == ("succeeded", MC, 1)
    await assert_settled(here, job_id)


async def test_mj10_a_cancel_between_two_providers_spares_the_second(shop: Open, tmp_path: Path) -> None:
    """The first provider's answer is unusable; the cancel that arrived meanwhile is heeded before another is paid."""

    async def useless(_: ProviderCall) -> ProviderResult:
        await asyncio.sleep(0.05)
        raise ProviderError("provider_down", "Down.", "retryable")

    second = Scripted("second", after(30))
    here = await shop(Scripted("first", useless), second)
    job_id = await here.submit()

    async with working(here):
        await until(lambda: second.at_once == 1)
        await acts.cancel(here.db, here.tenant, job_id)
        (job,) = await closed(here, job_id)

    assert job.state == "cancelled"


# Leaving


async def test_a_worker_that_leaves_gives_its_runs_back_uncounted_and_another_finishes_them(shop: Open) -> None:
    slow = Scripted("slow", *[after(60)] * 5, after(0.01))
    here = await shop(slow)
    job_ids = [await here.submit() for _ in range(5)]

    async with working(here, lease_s=30, shutdown_s=3) as loop:
        await until(lambda: slow.at_once == 5)
        began = time.monotonic()
        loop.stop()
        late = await here.submit()
        await until(lambda: loop.active == 0)
    assert time.monotonic() - began < 2.5

    for job_id in (*job_ids, late):
        queued = await here.queue(job_id)
        assert queued is not None
        assert (queued["lease_owner"], queued["runs"]) == (None, 0), "given back, not left to run out"
    async with working(here):
        jobs = await closed(here, *job_ids, late)
    assert {(job.state, job.runs) for job in jobs} == {("succeeded", 1)}
    for job_id in job_ids:
        assert await here.events(job_id) == ["job.started", "job.completed"]
        await assert_settled(here, job_id)


async def test_a_worker_that_leaves_lets_what_is_nearly_done_finish(shop: Open) -> None:
    slow = Scripted("slow", after(0.5))
    here = await shop(slow)
    job_id = await here.submit()

    async with working(here, shutdown_s=6) as loop:
        await until(lambda: slow.at_once == 1)
        loop.stop()

    assert ((await here.job(job_id)).state, len(slow.calls)) == ("succeeded", 1)


async def test_a_worker_that_leaves_settles_a_result_it_has(shop: Open, tmp_path: Path) -> None:
    """The grace is over while the picture is still being written: it is kept, since it was paid for."""
    store = Slow(tmp_path, 1.5)
    here = await shop(Scripted("quick", pictures(png())), store=store)
    job_id = await here.submit()

    async with working(here, shutdown_s=3) as loop:
        await until(lambda: store.writing)
        loop.stop()

    assert (await here.job(job_id)).state == "succeeded"
    await assert_settled(here, job_id)


async def test_an_adapter_that_will_not_stop_does_not_keep_the_worker(shop: Open) -> None:
    async def stubborn(_: ProviderCall) -> ProviderResult:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                continue
        return text()

    slow = Scripted("stubborn", stubborn)
    here = await shop(slow)
    job_id = await here.submit()
    loop = WorkerLoop(here.resources, LoopSettings(4, 1.0, 0.3, 2.0))
    task = asyncio.create_task(loop.run())
    await until(lambda: slow.at_once == 1)

    loop.stop()
    took_s = await until(task.done)

    assert took_s < 2.0
    assert (await here.job(job_id)).is_open
    await until(lambda: loop.active == 0)


async def test_nothing_is_left_behind_by_a_thousand_endings(shop: Open) -> None:
    """No task, no slot, no connection: over successes, failures, breakages and cancels."""
    down = ProviderError("provider_down", "Down.", "retryable")
    here = await shop(Scripted("mixed", text(), down, KeyError("x"), after(0.01), after(0.3)), backoff_s=0.01)
    tasks = len(asyncio.all_tasks())

    async with working(here) as loop:
        for _ in range(4):
            job_ids = [await here.submit() for _ in range(40)]
            for job_id in job_ids[::3]:
                await acts.cancel(here.db, here.tenant, job_id)
            await closed(here, *job_ids)
        await until(lambda: loop.active == 0)

    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    for role, pool in here.db._pools.items():
        stats = pool.get_stats()
        given_back = stats["pool_available"] + here.db._lending[role].at_hand
        assert given_back == stats["pool_size"], "a connection was not given back"
        assert stats["requests_waiting"] == 0
    assert await acts.books(here.db, here.tenant.org_id) == {}
