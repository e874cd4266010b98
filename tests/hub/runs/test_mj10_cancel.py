"""MJ10: cancel has one clear outcome, and what it answers is what happened."""

import asyncio
import random
import time
from collections import Counter

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import jobs, runs
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from limner.tenancy import apps, end_users
from tests import acts, tiers
from tests.conftest import MakeTenant, Tenant

QUEUED_P99_S = 0.2


async def _worker(db: Database, stop: asyncio.Event, owner: str) -> None:
    """Claims, starts, works a few milliseconds, obeys cancel, finishes: what a worker does, in little."""
    while not stop.is_set():
        leases = await acts.claim(db, 2, owner=owner, lease_s=5)
        if not leases:
            await asyncio.sleep(0.002)
        for held in leases:
            try:
                await _one_job(db, held)
            except refusals.StaleLease:
                raise AssertionError("nobody else may own a job under a live lease") from None


async def _one_job(db: Database, held: runs.Lease) -> None:
    if held.exhausted:
        await acts.finish(db, held, "cancelled" if held.exhausted == "cancelled" else "failed")
        return
    await acts.start(db, held)
    await asyncio.sleep(random.uniform(0, 0.004))
    async with db.system_tx("limner_dispatch", "a test beats") as tx:
        verdict = (await runs.heartbeat(tx, [held], 5))[held.job_id]
    await asyncio.sleep(random.uniform(0, 0.002))
    await acts.finish(db, held, "cancelled" if verdict == "cancel" else "succeeded")


@pytest.mark.parametrize("count", tiers.counts(50, 500, full=2_000))
async def test_mj10_the_answer_agrees_with_the_final_state_and_the_ledger(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, count: int
) -> None:
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=count * 2)
    stop = asyncio.Event()
    workers = [asyncio.create_task(_worker(db, stop, f"w{n}")) for n in range(3)]
    answers: dict[object, str] = {}

    async def life() -> None:
        job_id = (await acts.submit(db, tenant)).job_id
        await asyncio.sleep(random.uniform(0, 0.03))
        answers[job_id] = await acts.cancel(db, tenant, job_id)

    for _ in range(count // 10):
        await asyncio.gather(*(life() for _ in range(10)))
    while acts.count(superuser, "SELECT count(*) FROM limner.job_queue WHERE org_id = %s", tenant.org_id):
        await asyncio.sleep(0.01)
        for task in workers:
            assert not task.done(), task.exception()
    stop.set()
    await asyncio.gather(*workers)

    allowed = {
        "cancelled": {"cancelled"}, "requested": {"cancelled", "succeeded"},
        "already_succeeded": {"succeeded"}, "already_cancelled": {"cancelled"},
    }  # fmt: skip
    charged = 0
    for job_id, answer in answers.items():
        job = await acts.job(db, tenant, job_id)  # type: ignore[arg-type]
        assert job.state in allowed[answer], (answer, job.state)
        assert job.charged_mc == (MC if job.state == "succeeded" else 0)
        charged += job.charged_mc
    assert (await acts.wallet(db, tenant)).available_mc == count * 2 * MC - charged
    assert await acts.books(db, tenant.org_id) == {}
    assert len(Counter(answers.values())) > 1, f"every cancel met the same state: {Counter(answers.values())}"


async def test_mj10_a_queued_job_is_cancelled_at_once_and_its_credits_are_back(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=100)
    took = []

    for _ in range(100):
        job_id = (await acts.submit(db, tenant)).job_id
        started = time.perf_counter()
        assert await acts.cancel(db, tenant, job_id) == "cancelled"
        took.append(time.perf_counter() - started)
        assert await acts.cancel(db, tenant, job_id) == "already_cancelled"

    assert (await acts.wallet(db, tenant)).available_mc == 100 * MC
    assert sorted(took)[98] <= QUEUED_P99_S


async def test_mj10_a_cancelled_job_is_never_claimed_again(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.cancel(db, tenant, job_id)

    assert await acts.claim(db, 10) == []


async def test_mj10_a_running_job_is_asked_and_a_later_claim_may_only_close_it(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    job_id = (await acts.submit(db, tenant)).job_id
    held = await acts.lease(db, job_id, lease_s=60)
    await acts.start(db, held)
    assert [await acts.cancel(db, tenant, job_id) for _ in range(2)] == ["requested"] * 2
    assert (await acts.job(db, tenant, job_id)).cancel_requested_at is not None
    superuser.execute("UPDATE limner.job_queue SET claimable_at = clock_timestamp() WHERE job_id = %s", [job_id])

    again = await acts.lease(db, job_id, owner="w2")

    assert again.exhausted == "cancelled"
    assert await acts.finish(db, again, "cancelled") == "cancelled"
    assert (await acts.wallet(db, tenant)).available_mc == 1000 * MC


async def test_mj10_a_result_that_comes_first_wins_and_is_charged(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    held = await acts.lease(db, job_id, lease_s=60)
    await acts.start(db, held)
    assert await acts.cancel(db, tenant, job_id) == "requested"

    assert await acts.finish(db, held) == "succeeded"

    assert await acts.cancel(db, tenant, job_id) == "already_succeeded"
    assert (await acts.job(db, tenant, job_id)).charged_mc == MC


async def test_mj10_a_released_job_is_cancelled_at_once(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    held = await acts.lease(db, job_id, lease_s=60)
    await acts.start(db, held)
    async with db.tenant_tx(held.org_id, "limner_worker") as tx:
        await runs.release(tx, held, 600, counts=True)

    assert await acts.cancel(db, tenant, job_id) == "cancelled"


async def test_mj10_strangers_cannot_cancel(db: Database, tenant: Tenant, make_tenant: MakeTenant) -> None:
    other = await make_tenant()
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.submit(db, tenant, user="bob", price=0)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        second = await apps.create(tx, "second", "Second", actor="test")
    async with db.tenant_tx(tenant.org_id) as tx:
        bob = await end_users.get(tx, tenant.app.id, "bob")

    strangers = [
        (other.org_id, other.app.id, None),
        (tenant.org_id, second.id, None),
        (tenant.org_id, tenant.app.id, bob.id),
    ]
    for org_id, app_id, user_id in strangers:
        with pytest.raises(jobs.JobNotFound):
            async with db.tenant_single(org_id) as tx:
                await jobs.cancel(tx, app_id, job_id, user_id)
    with pytest.raises(jobs.JobNotFound):
        await acts.cancel(db, tenant, ids.new())

    assert (await acts.job(db, tenant, job_id)).state == "queued"
    async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
        assert await jobs.cancel(tx, None, job_id) == "cancelled"
