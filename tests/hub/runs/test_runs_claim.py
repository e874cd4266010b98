"""Who is next: overdue jobs first, then apps in turn; priority only inside an app; nobody twice (MJ17 at the level of SQL)."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import runs
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from limner.tenancy import apps
from tests import acts
from tests.conftest import MakeTenant, Tenant


@pytest.fixture(autouse=True)
def _only_this_tests_jobs(superuser: psycopg.Connection) -> None:
    acts.empty_queue(superuser)


async def _submit_many(db: Database, tenant: Tenant, count: int, *, app_id: UUID | None = None) -> list[UUID]:
    answers = [await acts.submit(db, tenant, price=0, app_id=app_id) for _ in range(count)]
    return [a.job_id for a in answers]


async def _until_claimed(db: Database, job_id: UUID, limit: int) -> int:
    """How many claims of `limit` it takes until this job is leased."""
    for number in range(1, 1000):
        if job_id in {held.job_id for held in await acts.claim(db, limit, lease_s=600)}:
            return number
    raise AssertionError("never claimed")


async def test_mj17_a_backlog_does_not_stand_before_anothers_first_job(db: Database, make_tenant: MakeTenant) -> None:
    busy, newcomer = await make_tenant(), await make_tenant()
    await _submit_many(db, busy, 500)
    await acts.claim(db, 64, lease_s=600)

    first = (await acts.submit(db, newcomer)).job_id

    assert await _until_claimed(db, first, limit=10) == 1


async def test_mj17_a_backlog_does_not_win_every_claim_of_a_single_slot(db: Database, make_tenant: MakeTenant) -> None:
    """A busy worker asks for one job at a time. By age alone the newcomer would wait for all 500."""
    busy, newcomer = await make_tenant(), await make_tenant()
    await _submit_many(db, busy, 500)

    waits = []
    for _ in range(10):
        first = (await acts.submit(db, newcomer)).job_id
        waits.append(await _until_claimed(db, first, limit=1))

    assert max(waits) < 100, waits  # lots between two: 2^-99 to fail
    assert sum(waits) / len(waits) < 20, waits


async def test_mj17_two_apps_of_one_organization_take_turns(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        second = await apps.create(tx, "second", "Second", actor="test")
    await _submit_many(db, tenant, 50)
    await _submit_many(db, tenant, 50, app_id=second.id)

    leases = await acts.claim(db, 20)

    assert Counter(held.app_id for held in leases) == {tenant.app.id: 10, second.id: 10}


async def test_mj17_priority_orders_jobs_of_one_app_and_moves_nobody_elses(
    db: Database, make_tenant: MakeTenant
) -> None:
    pushy, modest = await make_tenant(), await make_tenant()
    late = [(await acts.submit(db, pushy, price=0, priority=p)).job_id for p in (50, 90, 10, 50)]
    await acts.submit(db, pushy, price=0, priority=100)
    humble = [(await acts.submit(db, modest, price=0, priority=100)).job_id for _ in range(2)]

    first, second = await acts.claim(db, 2), await acts.claim(db, 2)

    assert {held.job_id for held in first} == {late[2], humble[0]}
    assert {held.job_id for held in second} == {late[0], humble[1]}
    assert [held.job_id for held in await acts.claim(db, 1)] == [late[3]]
    assert [held.job_id for held in await acts.claim(db, 1)] == [late[1]]


async def test_mj17_apps_with_nothing_to_take_do_not_shrink_the_others_share(
    db: Database, make_tenant: MakeTenant
) -> None:
    for _ in range(4):
        await _submit_many(db, await make_tenant(), 1)
    assert len(await acts.claim(db, 10, lease_s=600)) == 4
    await _submit_many(db, await make_tenant(), 30)

    assert len(await acts.claim(db, 20)) == 20


async def test_overdue_jobs_come_first_and_may_only_be_closed(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant, other = await make_tenant(), await make_tenant()
    await _submit_many(db, other, 5)
    late = await _submit_many(db, tenant, 3)
    superuser.execute(
        "UPDATE limner.job_queue SET deadline_at = clock_timestamp() - interval '1 s' WHERE job_id = ANY(%s)",
        [late[1:]],
    )

    leases = await acts.claim(db, 2)

    assert {(held.job_id, held.exhausted) for held in leases} == {(j, "deadline_exceeded") for j in late[1:]}
    assert all(held.deadline_in_s < 0 for held in leases)
    for held in leases:
        assert await acts.finish(db, held, "failed") == "failed"
    assert await acts.books(db, tenant.org_id) == {}


async def test_a_deadline_is_counted_from_the_submit(db: Database, tenant: Tenant) -> None:
    await acts.submit(db, tenant, deadline_s=1)

    early = (await acts.claim(db, 1, lease_s=0.01))[0]
    await asyncio.sleep(1.05)
    late = (await acts.claim(db, 1))[0]

    assert (early.exhausted, 0 < early.deadline_in_s < 1) == (None, True)
    assert late.exhausted == "deadline_exceeded"


async def test_runs_are_counted_and_used_up(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant, max_runs=2)).job_id

    seen = []
    for _ in range(3):
        held = await acts.lease(db, job_id, lease_s=0.01)
        seen.append((held.run, held.exhausted))
        await asyncio.sleep(0.02)

    assert seen == [(1, None), (2, None), (3, "runs_exhausted")]


async def test_release_that_counts_uses_a_run_and_one_that_does_not_gives_it_back(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant, max_runs=1)).job_id

    for counts, exhausted in ((False, None), (False, None), (True, None), (False, "runs_exhausted")):
        held = await acts.lease(db, job_id)
        assert held.exhausted == exhausted
        await _release(db, held, 0, counts=counts)

    assert (await acts.job(db, tenant, job_id)).state == "queued"
    assert await acts.books(db, tenant.org_id) == {}


async def test_release_with_a_delay_hides_the_job_that_long(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    await _release(db, await acts.lease(db, job_id), 0.2, counts=True)

    assert await acts.claim(db, 5) == []
    await asyncio.sleep(0.25)
    assert [held.job_id for held in await acts.claim(db, 5)] == [job_id]


async def test_a_live_lease_is_not_claimable_and_an_expired_one_is(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    first = await acts.lease(db, job_id, lease_s=0.15)

    assert await acts.claim(db, 5, owner="w2") == []
    await asyncio.sleep(0.2)
    second = (await acts.claim(db, 5, owner="w2"))[0]

    assert (second.job_id, second.fence, second.run) == (job_id, first.fence + 1, 2)


async def test_two_claimers_never_get_the_same_job(db: Database, make_tenant: MakeTenant) -> None:
    tenants = [await make_tenant() for _ in range(3)]
    submitted = {job_id for tenant in tenants for job_id in await _submit_many(db, tenant, 80)}
    taken: list[UUID] = []

    async def claimer(name: str) -> None:
        empty = 0
        while empty < 3:
            leases = await acts.claim(db, 7, owner=name, lease_s=600)
            taken.extend(held.job_id for held in leases)
            empty = 0 if leases else empty + 1

    await asyncio.gather(*(claimer(f"w{n}") for n in range(8)))

    assert Counter(taken) == Counter(submitted)


async def test_the_run_leaves_its_traces_once(db: Database, tenant: Tenant, superuser: psycopg.Connection) -> None:
    """Two runs: one `job.started`, one terminal event, one set of usage, started_at of the first run."""
    job_id = (await acts.submit(db, tenant)).job_id
    held = await acts.lease(db, job_id)
    await acts.start(db, held)
    first_start = (await acts.job(db, tenant, job_id)).started_at
    await _release(db, held, 0, counts=True)
    again = await acts.work(db, job_id)

    job = await acts.job(db, tenant, job_id)
    events = superuser.execute("SELECT type FROM limner.event WHERE subject_id = %s ORDER BY id", [job_id]).fetchall()

    assert [e[0] for e in events] == ["job.started", "job.completed"]
    assert (job.runs, job.started_at, job.finished_fence) == (2, first_start, again.fence)
    assert acts.count(superuser, "SELECT count(*) FROM limner.usage_record WHERE job_id = %s", job_id) == 1
    assert job.finished_at is not None
    assert job.finished_at - job.created_at < timedelta(seconds=30)


async def test_attempts_send_once_reuse_what_is_done_and_ask_when_uncertain(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    held = await acts.lease(db, job_id, lease_s=60)
    await acts.start(db, held)

    first = await _intend(db, held)
    await _release(db, held, 0, counts=True)
    held = await acts.lease(db, job_id, lease_s=60)
    uncertain = await _intend(db, held)
    resent = await _intend(db, held, resend=True)
    async with db.tenant_tx(held.org_id, "limner_worker") as tx:
        await tx.execute(
            "SELECT limner.call_result(NULL, %s, %s, 'main', 'local', %s, 'done', 't', 7, 3, NULL, NULL, %s::text::jsonb, %s)",
            [job_id, held.fence, resent.send_no, '[{"key": "k"}]', ids.new()],
        )
    reused = await _intend(db, held)

    assert [x.decision for x in (first, uncertain, resent, reused)] == ["send", "uncertain", "send", "reuse"]
    assert [x.send_no for x in (first, uncertain, resent, reused)] == [1, 1, 2, 2]
    assert len({x.idem_key for x in (first, uncertain, resent, reused)}) == 1, (
        "the provider's key is the same over every run"
    )
    assert (reused.outputs, reused.cost_micro_usd) == ([{"key": "k"}], 7)
    with pytest.raises(refusals.StaleLease):
        await _intend(db, replace(held, fence=held.fence - 1))


async def test_a_failed_attempt_is_told_and_the_next_one_is_sent(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    held = await acts.lease(db, job_id, lease_s=60)
    await acts.start(db, held)
    sent = await _intend(db, held)
    async with db.tenant_tx(held.org_id, "limner_worker") as tx:
        await runs.record_error(
            tx, held, "main", "local", sent.send_no, code="overloaded", message="x" * 5000, latency_ms=3
        )

    again = await _intend(db, held)

    assert (again.decision, again.send_no) == ("send", 2)
    told = superuser.execute(
        "SELECT payload FROM limner.event WHERE subject_id = %s AND type = 'job.attempt_failed'", [job_id]
    ).fetchall()
    assert [row[0] for row in told] == [{"job_id": str(job_id), "provider": "local", "run": 1, "code": "overloaded"}]
    assert await acts.finish(db, held, charge_mc=MC) == "succeeded"


async def _release(db: Database, held: runs.Lease, delay_s: float, *, counts: bool) -> None:
    async with db.tenant_tx(held.org_id, "limner_worker") as tx:
        await runs.release(tx, held, delay_s, counts=counts)


async def _intend(db: Database, held: runs.Lease, *, resend: bool = False) -> runs.Intent:
    async with db.tenant_tx(held.org_id, "limner_worker") as tx:
        return await runs.intend(tx, held, "main", "local", "m", "priority", resend=resend)
