"""What a run does about what earlier runs left, about lost answers, and about a store that fails."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import runs
from limner.hub.endings import Finish, Release
from limner.hub.executor import Run
from limner.hub.providers.base import CallClass, ProviderCall, ProviderError, ProviderResult
from limner.kit.cpu import CpuPool
from limner.kit.money import MC
from limner.ledger import refusals
from limner.media.store import ObjectStore
from tests.conftest import Tenant
from tests.hub.doubles import Scripted, Shop, after, assert_settled, counted, open_shop, pictures, png, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone

__all__ = ["db_alone", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write goes alone: what a shared commit leaves out. Shared ones: test_shared_writes.py."""

    async def leave_out(*_: Any) -> list[tuple[int, Any]]:
        return []

    monkeypatch.setattr(runs, "work_many", leave_out)


DOWN = ProviderError("provider_down", "It is down.", "retryable")


# What an earlier run left


async def _die_after(shop: Shop, job_id: Any, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gets through `runs.<function>` and is gone before its next write."""
    real = getattr(runs, function)

    async def last(*args: Any, **facts: Any) -> Any:
        await real(*args, **facts)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(runs, function, last)
        run = Run(shop.resources, await shop.lease(job_id, lease_s=0.05))
        with pytest.raises(SystemExit):
            await run.decide()
    await asyncio.sleep(0.06)


@pytest.mark.parametrize("call_class", [CallClass.A, CallClass.C])
async def test_mj9_an_unknown_outcome_is_sent_again_with_the_same_key(
    shop: Open, monkeypatch: pytest.MonkeyPatch, call_class: CallClass
) -> None:
    here = await shop(Scripted("only", call_class=call_class))
    job_id = await here.submit()
    resent = counted("provider_resends", provider="only", call_class=call_class.value)
    await _die_after(here, job_id, "intend", monkeypatch)

    job = await here.run(job_id)

    assert (job.state, job.price_final_mc) == ("succeeded", MC)
    first, second = await here.attempts(job_id)
    assert (first["state"], second["state"]) == ("unknown", "done")
    assert first["idem_key"] == second["idem_key"] == here.providers[0].calls[0].idempotency_key
    assert counted("provider_resends", provider="only", call_class=call_class.value) == resent + 1


async def test_mj9_class_c_is_paid_twice_at_most_and_the_tenant_never(shop: Open) -> None:
    here = await shop(Scripted("only", after(30), call_class=CallClass.C), config={"timeout_s": 0.05}, max_runs=5)
    job_id = await here.submit(max_runs=5)
    refused = counted("provider_attempts", provider="only", outcome="outcome_unknown")

    job = await here.run_to_the_end(job_id)

    assert len(here.providers[0].calls) == 2
    assert (job.state, job.error_code, job.price_final_mc, job.runs) == ("failed", "outcome_unknown", 0, 3)
    assert counted("provider_attempts", provider="only", outcome="outcome_unknown") == refused + 1
    await assert_settled(here, job_id, 0, MC)


async def test_mj9_class_c_after_a_definite_failure_may_be_sent_again(shop: Open) -> None:
    here = await shop(Scripted("only", DOWN, DOWN, text(), call_class=CallClass.C))

    job = await here.run_to_the_end(await here.submit())

    assert (job.state, len(here.providers[0].calls)) == ("succeeded", 3)


async def test_mj9_an_error_after_which_nobody_knows_counts_as_unknown(shop: Open) -> None:
    lost = ProviderError("connection_lost", "It hung up.", "retryable", outcome_unknown=True)
    here = await shop(Scripted("only", lost, call_class=CallClass.C), max_runs=5)

    job = await here.run_to_the_end(await here.submit(max_runs=5))

    assert (job.error_code, len(here.providers[0].calls)) == ("outcome_unknown", 2)


async def test_mj9_another_provider_is_another_call(shop: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    here = await shop(
        Scripted("first", after(30), call_class=CallClass.C), Scripted("second"), config={"timeout_s": 0.05}
    )
    job_id = await here.submit()

    assert (await here.run(job_id)).provider_used == "second"


# Answers that were lost


@pytest.mark.parametrize("function", ["start", "record_error", "finish", "release"])
async def test_mj5_a_lost_answer_of_a_commit_changes_nothing(
    shop: Open, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """The statement commits, the connection dies before its answer arrives."""
    steps = (text(),) if function in {"start", "finish"} else (DOWN, text())
    here = await shop(Scripted("only", *steps))
    job_id = await here.submit()
    real = getattr(runs, function)
    lost: list[str] = []

    async def lose_once(tx: Any, *args: Any, **facts: Any) -> Any:
        answer = await real(tx, *args, **facts)
        if not lost:
            lost.append(function)
            if tx.ctx is None:
                await tx._conn.commit()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer

    monkeypatch.setattr(runs, function, lose_once)
    finished = counted("jobs_finished", model="test/painter", outcome="succeeded", error_code="")

    job = await here.run_to_the_end(job_id)

    assert lost == [function]
    assert (job.state, job.price_final_mc) == ("succeeded", MC)
    assert len(here.providers[0].calls) == len(steps)
    assert await here.events(job_id) == ["job.started", *["job.attempt_failed"] * (len(steps) - 1), "job.completed"]
    assert counted("jobs_finished", model="test/painter", outcome="succeeded", error_code="") == finished + 1
    await assert_settled(here, job_id, MC, MC)


async def test_a_context_that_ran_out_is_signed_again_by_the_databases_clock(shop: Open) -> None:
    """A machine that slept thinks it is earlier than it is: its contexts are over before they arrive."""
    here = await shop(Scripted("only"))
    job_id = await here.submit()
    run = Run(here.resources, await here.lease(job_id))
    here.db.clock.sync(here.db.clock.now() - 3600)

    await run.end(await run.decide())

    assert (await here.job(job_id)).state == "succeeded"


async def test_mj7_a_run_that_lost_its_lease_writes_nothing_and_its_objects_stand_apart(
    shop: Open, store: ObjectStore
) -> None:
    here = await shop(Scripted("only", pictures(png(grey=1)), pictures(png(grey=2)), pictures(png(grey=3))))
    job_id = await here.submit()
    stale = Run(here.resources, await here.lease(job_id, lease_s=0.05))
    ending = await stale.decide()
    await asyncio.sleep(0.06)
    late = Run(here.resources, await here.lease(job_id, lease_s=0.05))

    with pytest.raises(refusals.StaleLease):
        await stale.end(ending)
    await late.end(await late.decide())

    job = await here.job(job_id)
    (output,) = job.outputs or []
    assert job.finished_fence == 2
    assert job.price_final_mc == MC
    with pytest.raises(refusals.StaleLease):
        await stale.end(Finish("failed", "x", "x"))
    with pytest.raises(refusals.StaleLease):
        await stale.end(Release(0, counts=True, reason="x"))
    assert await here.job(job_id) == job
    assert output["key"].split("/")[-2] == "2", "what the stale run stored stands under its own fence, and is swept"
    assert sorted(a["state"] for a in await here.attempts(job_id)) == ["done", "unknown"]
    await assert_settled(here, job_id, MC, MC)


async def test_mj7_two_runs_at_once_keep_their_objects_apart(shop: Open, store: ObjectStore) -> None:
    gate = asyncio.Event()

    async def late(_: ProviderCall) -> ProviderResult:
        await gate.wait()
        return pictures(png(grey=10))

    here = await shop(Scripted("only", late, pictures(png(grey=200))))
    job_id = await here.submit()
    stale = Run(here.resources, await here.lease(job_id, lease_s=0.05))
    deciding = asyncio.create_task(stale.decide())
    await asyncio.sleep(0.1)
    job = await here.run(job_id)
    (output,) = job.outputs or []
    before = await store.read(output["key"])

    gate.set()
    with pytest.raises(refusals.StaleLease):
        await stale.end(await deciding)

    keys = await store.list_keys(output["key"].rsplit("/", 2)[0] + "/")
    assert sorted(key.split("/")[-2] for key in keys) == ["1", "2"], "the loser stored its own, under its own fence"
    assert await store.read(output["key"]) == before
    assert await here.job(job_id) == job


# Stores that fail


class Failing(ObjectStore):
    """A store whose writes fail so many times."""

    def __init__(self, home: Path, failures: int) -> None:
        super().__init__(None, home)
        self.failures = failures

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        if self.failures > 0:
            self.failures -= 1
            blocked = self._folder
            assert blocked is not None
            (blocked / "outputs").write_text("a file where a folder should be")
            try:
                await super().put(key, data, media_type)
            finally:
                (blocked / "outputs").unlink()
        await super().put(key, data, media_type)


async def test_a_store_that_stumbles_is_asked_again(
    shop: Open, db: Database, tenant: Tenant, pool: CpuPool, tmp_path: Path
) -> None:
    painter = Scripted("painter", pictures(png()))
    here = await open_shop(db, tenant, Failing(tmp_path, 2), pool, painter)

    job = await here.run(await here.submit())

    assert (job.state, job.runs, len(painter.calls)) == ("succeeded", 1, 1)


async def test_a_store_that_is_away_costs_no_second_provider_and_in_the_end_no_credits(
    db: Database, tenant: Tenant, pool: CpuPool, tmp_path: Path
) -> None:
    first, second = Scripted("first", pictures(png())), Scripted("second", pictures(png()))
    here = await open_shop(db, tenant, Failing(tmp_path, 999), pool, first, second, max_runs=2)
    job_id = await here.submit(max_runs=2)

    job = await here.run_to_the_end(job_id)

    assert (job.state, job.error_code, job.price_final_mc) == ("failed", "store_unavailable", 0)
    assert (len(first.calls), len(second.calls)) == (2, 0)
    await assert_settled(here, job_id, 0, MC)


async def test_a_child_that_is_killed_over_a_picture_is_not_the_pictures_fault(
    db: Database, tenant: Tenant, store: ObjectStore, pool: CpuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The out-of-memory killer takes the child that decodes what was paid for: it is decoded again by another."""
    painter = Scripted("painter", pictures(png()))
    here = await open_shop(db, tenant, store, pool, painter)
    real = pool.run
    killed: list[str] = []

    def kill() -> None:
        for pid in pool.pids():
            os.kill(pid, signal.SIGKILL)

    async def killing(target: str, *args: object, **limits: Any) -> Any:
        if killed:
            return await real(target, *args, **limits)
        killed.append(target)
        shot = asyncio.get_running_loop().call_later(0.3, kill)
        try:
            return await real("time:sleep", 5)
        finally:
            shot.cancel()

    monkeypatch.setattr(pool, "run", killing)

    job = await here.run(await here.submit())

    assert killed == ["limner.media.images:reencode"]
    assert (job.state, len(painter.calls)) == ("succeeded", 1)
