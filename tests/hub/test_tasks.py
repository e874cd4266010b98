"""Tasks that a provider takes on: what the next run finds, what is told of them, and who is called off."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from limner.hub import accepted, runs
from limner.hub.executor import Run
from limner.hub.providers.base import CallClass, ProviderCall, ProviderError, ProviderResult
from limner.kit.money import MC
from limner.media.store import StoreUnavailable
from tests import acts
from tests.conftest import MakeTenant
from tests.hub.doubles import Scripted, Step, assert_settled, counted, pictures, png, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone

__all__ = ["db_alone", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

GONE = ProviderError("provider_task_gone", "It is gone.", "retryable")
LOST = ProviderError("provider_connection_lost", "It is lost.", "retryable", outcome_unknown=True)


class Tasks(Scripted):
    """Takes a call on as a task and then does as its steps say; asked after a task, it sends nothing."""

    def __init__(self, name: str, *steps: Step) -> None:
        super().__init__(name, *steps, call_class=CallClass.C)
        self.sent = 0
        self.called_off: list[str | None] = []

    async def run(self, call: ProviderCall) -> ProviderResult:
        if call.task_id is None:
            self.sent += 1
            await call.accepted(f"task-{self.sent}")
        return await super().run(call)

    async def call_off(self, call: ProviderCall) -> None:
        self.called_off.append(call.task_id)


def hangs() -> tuple[asyncio.Event, Callable[[ProviderCall], Awaitable[ProviderResult]]]:
    """A step that never answers, and a sign that it was reached."""
    reached = asyncio.Event()

    async def step(_: ProviderCall) -> ProviderResult:
        reached.set()
        await asyncio.sleep(60)
        return text()

    return reached, step


async def interrupted(here: Any, job_id: Any, reached: asyncio.Event) -> Run:
    """A run that came as far as that and died there."""
    run = Run(here.resources, await here.lease(job_id, 0.2))
    task = asyncio.create_task(run.decide())
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return run


async def test_mj9_a_task_that_was_accepted_is_asked_after_and_never_sent_again(shop: Open) -> None:
    reached, step = hangs()
    far = Tasks("far", step, text("a hare"))
    here = await shop(far)
    job_id = await here.submit()
    await interrupted(here, job_id, reached)
    resumed = counted("provider_resumes", provider="far")

    job = await here.run_to_the_end(job_id)

    assert (job.state, job.runs, far.sent) == ("succeeded", 2, 1)
    assert [call.task_id for call in far.calls] == [None, "task-1"]
    assert [(a["state"], a["send_no"]) for a in await here.attempts(job_id)] == [("done", 1)]
    assert counted("provider_resumes", provider="far") == resumed + 1
    await assert_settled(here, job_id)


async def test_mj9_a_task_under_way_goes_before_the_provider_that_is_first(shop: Open) -> None:
    reached, step = hangs()
    first = Scripted("first", GONE, text("too late"))
    here = await shop(first, Tasks("second", step, text("a hare")))
    job_id = await here.submit()
    await interrupted(here, job_id, reached)

    job = await here.run_to_the_end(job_id)

    assert (job.provider_used, len(first.calls)) == ("second", 1)


async def test_a_task_that_is_gone_is_an_error_that_moves_on(shop: Open) -> None:
    reached, step = hangs()
    far, other = Tasks("far", step, GONE), Scripted("other")
    here = await shop(far, other)
    job_id = await here.submit()
    await interrupted(here, job_id, reached)

    job = await here.run_to_the_end(job_id)

    assert (job.state, job.provider_used, far.sent) == ("succeeded", "other", 1)
    assert [(a["state"], a["error_code"]) for a in await here.attempts(job_id)] == [
        ("error", "provider_task_gone"),
        ("done", None),
    ]
    await assert_settled(here, job_id)


async def test_mj9_a_task_that_could_not_be_asked_after_stands_and_is_asked_after_by_the_next_run(shop: Open) -> None:
    far = Tasks("far", LOST, text("a hare"))
    here = await shop(far)
    job_id = await here.submit()
    await here.run(job_id)
    assert [(a["state"], a["error_code"]) for a in await here.attempts(job_id)] == [
        ("accepted", "provider_connection_lost")
    ]

    job = await here.run_to_the_end(job_id)

    assert (job.state, far.sent, len(far.calls)) == ("succeeded", 1, 2)
    assert await here.events(job_id) == ["job.started", "job.attempt_failed", "job.completed"]


async def test_mj9_a_result_that_could_not_be_stored_is_not_paid_for_again(
    shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Tasks("far", pictures(png(8)))
    here = await shop(far)
    job_id = await here.submit()
    with monkeypatch.context() as patched:
        patched.setattr("limner.hub.outputs.keep", _away)
        await here.run(job_id)

    job = await here.run_to_the_end(job_id)

    assert (job.state, far.sent, len(far.calls)) == ("succeeded", 1, 2)
    await assert_settled(here, job_id)


async def _away(*_: Any) -> None:
    raise StoreUnavailable("away")


async def test_mj10_a_cancelled_run_calls_its_task_off_after_the_customer_has_the_credits_back(shop: Open) -> None:
    reached, step = hangs()
    far = Tasks("far", step)
    here = await shop(far)
    job_id = await here.submit()
    run = await interrupted(here, job_id, reached)
    ending = run.stopped("cancel")
    assert ending is not None

    await run.end(ending)

    assert far.called_off == ["task-1"]
    assert (await here.job(job_id)).state == "cancelled"
    await assert_settled(here, job_id, 0, MC)


async def test_a_run_given_back_calls_nothing_off(shop: Open) -> None:
    reached, step = hangs()
    far = Tasks("far", step)
    here = await shop(far)
    job_id = await here.submit()
    run = await interrupted(here, job_id, reached)
    ending = run.stopped("shutdown")
    assert ending is not None

    await run.end(ending)

    assert far.called_off == []
    assert [a["state"] for a in await here.attempts(job_id)] == ["accepted"]


async def test_mj10_a_task_of_a_worker_that_died_is_called_off_by_whoever_closes_the_job(shop: Open) -> None:
    reached, step = hangs()
    far = Tasks("far", step)
    here = await shop(far, max_runs=1)
    job_id = await here.submit(max_runs=1)
    await interrupted(here, job_id, reached)
    await asyncio.sleep(0.25)

    job = await here.run_to_the_end(job_id)

    assert (job.state, job.error_code) == ("failed", "runs_exhausted")
    assert far.called_off == ["task-1"]
    await assert_settled(here, job_id, 0, MC)


async def test_mj7_a_worker_that_lost_its_lease_writes_no_task_down(shop: Open) -> None:
    late = asyncio.Event()

    class Late(Tasks):
        async def run(self, call: ProviderCall) -> ProviderResult:
            if not late.is_set():
                late.set()
                await asyncio.sleep(0.4)
            return await super().run(call)

    here = await shop(Late("far"))
    job_id = await here.submit()
    run = Run(here.resources, await here.lease(job_id, 0.2))
    task = asyncio.create_task(run.decide())
    await late.wait()
    await asyncio.sleep(0.25)
    other = await acts.lease(here.db, job_id)

    with pytest.raises(Exception, match="was lost"):
        await task
    assert other.fence == 2
    assert [a["state"] for a in await here.attempts(job_id)] == ["intent"]


@pytest.mark.parametrize("task_id", ["", "a\0b", "x" * (accepted.MAX_TASK_ID + 1)])
async def test_a_task_nobody_could_ask_after_by_its_name_is_the_adapters_mistake(shop: Open, task_id: str) -> None:
    class Odd(Tasks):
        async def run(self, call: ProviderCall) -> ProviderResult:
            await call.accepted(task_id)
            return text()

    here = await shop(Odd("odd"), Scripted("other"))

    job_id = await here.submit()
    job = await here.run(job_id)

    assert (job.state, job.provider_used) == ("succeeded", "other")
    assert [(a["state"], a["error_code"]) for a in await here.attempts(job_id)] == [
        ("unknown", "adapter_error"),
        ("done", None),
    ]


async def test_mj9_a_name_that_came_by_a_hook_outlives_the_workers_not_knowing(shop: Open) -> None:
    async def lost(call: ProviderCall) -> ProviderResult:
        async with here.db.tenant_single(here.tenant.org_id) as tx:
            assert await runs.adopt_task(tx, call.job_id, "main", "far", "task-1")
            assert not await runs.adopt_task(tx, call.job_id, "main", "far", "task-2"), "it has a name"
            assert not await runs.adopt_task(tx, call.job_id, "main", "other", "task-1")
        raise LOST

    class Nameless(Tasks):
        async def run(self, call: ProviderCall) -> ProviderResult:
            return await Scripted.run(self, call)

    far = Nameless("far", lost, text("a hare"))
    here = await shop(far)
    job_id = await here.submit()

    job = await here.run_to_the_end(job_id)

    assert [call.task_id for call in far.calls] == [None, "task-1"]
    assert (job.state, [a["send_no"] for a in await here.attempts(job_id)]) == ("succeeded", [1])
    async with here.db.tenant_single(here.tenant.org_id) as tx:
        assert not await runs.adopt_task(tx, job_id, "main", "far", "task-3"), "the job is over"


async def test_ta1_a_hook_of_one_organization_names_nothing_of_another(shop: Open, make_tenant: MakeTenant) -> None:
    reached, step = hangs()
    here = await shop(Scripted("far", step))
    job_id = await here.submit()
    await interrupted(here, job_id, reached)
    stranger = await make_tenant()

    async with here.db.tenant_single(stranger.org_id) as tx:
        assert not await runs.adopt_task(tx, job_id, "main", "far", "task-1")

    assert [a["state"] for a in await here.attempts(job_id)] == ["intent"]
