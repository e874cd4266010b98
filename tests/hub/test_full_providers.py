"""What a run does where a provider has as many jobs as it may: it goes to the next one, or waits without using itself up (MJ17)."""

import asyncio
from typing import Any
from uuid import UUID

import psycopg

from limner.hub import catalog, runs
from limner.hub.executor import Run
from limner.hub.providers.base import ProviderError
from limner.hub.runs import Lease
from limner.kit.money import MC
from tests import acts
from tests.hub.doubles import Scripted, Shop, Step, after, assert_settled, counted
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone
from tests.hub.looping import closed, impatient, until, working

__all__ = ["db_alone", "impatient", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

DOWN = ProviderError("provider_down", "It is down.", "retryable")


async def _cap(shop: Shop, name: str, cap: int | None) -> None:
    async with shop.db.tenant_tx(shop.tenant.org_id, "limner_operator") as tx:
        await catalog.limit_provider(tx, name, {"max_running": cap})


async def _fill(shop: Shop, name: str) -> Lease:
    """One job at a provider with one place, for as long as the test likes."""
    await _cap(shop, name, 1)
    job_id = await shop.submit(priority=1)
    held = await shop.lease(job_id, 600)
    await acts.start(shop.db, held)
    async with shop.db.tenant_tx(held.org_id, "limner_worker") as tx:
        row = await tx.get("SELECT p.id FROM limner.provider p WHERE p.org_id = %s AND p.name = %s", [tx.org_id, name])
        intent = await runs.intend(tx, held, "main", name, "m", "first", provider_id=row["id"])
    assert intent.decision == "send"
    return held


async def _run(shop: Shop, job_id: UUID) -> Any:
    one = Run(shop.resources, await shop.lease(job_id))
    ending = await one.decide()
    await one.end(ending)
    return ending


async def test_mj17_a_full_provider_is_passed_over_while_another_serves(shop: Open) -> None:
    here = await shop(Scripted("first"), Scripted("second"))
    await _fill(here, "first")
    before = counted("provider_attempts", provider="first", outcome="provider_full")

    job_id = await here.submit()
    job = await here.run(job_id)

    assert (job.state, job.provider_used, job.runs) == ("succeeded", "second", 1)
    assert here.providers[0].calls == []
    (attempt,) = await here.attempts(job_id)
    assert attempt["rule"] == "2 of 2 by priority 2, after first was full"
    assert await here.events(job_id) == ["job.started", "job.completed"]
    assert counted("provider_attempts", provider="first", outcome="provider_full") == before + 1
    await assert_settled(here, job_id)


async def test_mj17_a_run_that_finds_the_last_provider_full_waits_and_does_not_count(shop: Open) -> None:
    """With one run allowed: were it counted, the job would fail."""
    here = await shop(Scripted("first", DOWN), Scripted("second"), max_runs=1)
    holder = await _fill(here, "second")
    job_id = await here.submit()

    for _ in range(3):
        ending = await _run(here, job_id)
        assert (ending.reason, ending.counts) == ("provider_full", False)
        queued = await here.queue(job_id)
        assert queued is not None
        assert queued["runs"] == 0
        assert queued["wait_s"] > 0, "it rests: no busy loop"
        await until(lambda: here._claimable(job_id))
    assert here.providers[1].calls == []
    await acts.finish(here.db, holder, "failed")
    job = await here.run(job_id)

    assert (job.state, job.provider_used) == ("succeeded", "second")
    assert len(here.providers[0].calls) == 4
    await assert_settled(here, job_id)


async def test_mj17_a_refused_request_ends_although_a_provider_was_full(shop: Open) -> None:
    here = await shop(Scripted("first"), Scripted("second", ProviderError("refused", "Not this.", "content")))
    await _fill(here, "first")

    job = await here.run(await here.submit())

    assert (job.state, job.error_code) == ("failed", "refused")


async def test_mj17_an_answer_on_record_needs_no_place(shop: Open, superuser: psycopg.Connection) -> None:
    """An earlier run's result is used, however full the provider that made it has become."""
    here = await shop(Scripted("first"), Scripted("second"))
    job_id = await here.submit()
    first = await here.lease(job_id)
    assert await here.resources.shared.start(first)
    assert await here.resources.shared.intend(first, "main", "first", "m", "first")
    superuser.execute(
        "UPDATE limner.provider_call SET state = 'done', outputs = %s, finished_at = now() WHERE job_id = %s",
        ['[{"type": "text", "text": "a hare", "index": 0}]', job_id],
    )
    superuser.execute("UPDATE limner.job_queue SET claimable_at = now() - interval '1 s' WHERE job_id = %s", [job_id])
    await _fill(here, "first")

    job = await here.run(job_id)

    assert (job.state, job.provider_used) == ("succeeded", "first")
    assert [len(p.calls) for p in here.providers] == [0, 0]


async def test_mj17_three_workers_never_call_a_provider_more_often_than_its_cap(shop: Open) -> None:
    """The first provider fails half the jobs; they move on to one with a cap. By the providers' own count of calls at once."""
    half: list[Step] = [DOWN, after(0.01)]
    flaky = Scripted("flaky", *half * 40)
    steady = Scripted("steady", after(0.02))
    here = await shop(flaky, steady)
    await _cap(here, "flaky", 3)
    await _cap(here, "steady", 2)
    jobs = [await here.submit() for _ in range(40)]

    async with working(here, slots=10), working(here, slots=10), working(here, slots=10):
        done = await closed(here, *jobs, timeout_s=60)

    assert {job.state for job in done} == {"succeeded"}
    assert flaky.peak <= 3
    assert steady.peak == 2
    assert await acts.books(here.db, here.tenant.org_id) == {}


async def test_mj17_jobs_that_wait_for_a_full_provider_use_no_slot(shop: Open) -> None:
    """One worker with two slots; ten jobs for a provider that has one place and does not answer; others are done meanwhile."""
    gate = asyncio.Event()

    async def stuck(_: Any) -> Any:
        await gate.wait()
        return await after(0)(_)

    slow, quick = await shop(Scripted("slow", stuck)), await shop(Scripted("quick"))
    here = await _both(slow, quick)
    await _cap(here, "slow", 1)
    waiting = [await slow.submit(priority=1) for _ in range(10)]
    others = [await quick.submit() for _ in range(5)]

    async with working(here, slots=2) as loop:
        done = await closed(here, *others)
        assert {job.state for job in done} == {"succeeded"}
        assert slow.providers[0].peak == 1
        assert loop.active == 1
        assert [(await here.job(job_id)).state for job_id in waiting].count("queued") == 9
        gate.set()
        assert {job.state for job in await closed(here, *waiting)} == {"succeeded"}
    assert slow.providers[0].peak == 1
    assert {job.price_final_mc for job in done} == {MC}


async def _both(one: Shop, two: Shop) -> Shop:
    """A worker that knows the providers of both."""
    one.resources.adapters.update(two.resources.adapters)  # type: ignore[attr-defined]
    return one
