"""MJ7: a worker that lost its lease cannot write. Each verb of a worker, tried by one that was overtaken."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import runs
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from tests import acts
from tests.conftest import Tenant

Verb = Callable[[Database, runs.Lease], Awaitable[Any]]
SHORT_S = 0.03


def _as_worker(verb: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Verb:
    async def call(db: Database, held: runs.Lease) -> Any:
        async with db.tenant_tx(held.org_id, "limner_worker") as tx:
            return await verb(tx, held, *args, **named)

    return call


WRITES: dict[str, Verb] = {
    "start": _as_worker(runs.start),
    "intend": _as_worker(runs.intend, "main", "other", "m", "priority"),
    "record_error": _as_worker(runs.record_error, "main", "local", 1, code="x", message="x", latency_ms=1),
    "release": _as_worker(runs.release, 0.0, counts=True),
    "finish succeeded": acts.finish,
    "finish failed": lambda db, held: acts.finish(db, held, "failed"),
    "finish cancelled": lambda db, held: acts.finish(db, held, "cancelled"),
}


@pytest.fixture(autouse=True)
def _only_this_tests_jobs(superuser: psycopg.Connection) -> None:
    acts.empty_queue(superuser)


async def _started(db: Database, tenant: Tenant, lease_s: float = SHORT_S) -> runs.Lease:
    """A worker in the middle of a call: job started, intent written."""
    job_id = (await acts.submit(db, tenant)).job_id
    held = await acts.lease(db, job_id, lease_s=lease_s)
    await acts.start(db, held)
    await _as_worker(runs.intend, "main", "local", "m", "priority")(db, held)
    return held


async def _overtaken(db: Database, tenant: Tenant) -> tuple[runs.Lease, runs.Lease]:
    """A worker that slept past its lease, and the one that has the job now."""
    stale = await _started(db, tenant)
    await asyncio.sleep(SHORT_S * 1.5)
    live = await acts.lease(db, stale.job_id, owner="w2", lease_s=60)
    assert (live.fence, live.run) == (stale.fence + 1, stale.run + 1)
    return stale, live


def _everything_about(superuser: psycopg.Connection, held: runs.Lease) -> list[Any]:
    rows = []
    for table, column in (
        ("job", "id"), ("job_queue", "job_id"), ("provider_call", "job_id"), ("usage_record", "job_id"), ("event", "subject_id"),
        ("transfer", "job_id"), ("wallet", "org_id"),
    ):  # fmt: skip
        key = held.org_id if table == "wallet" else held.job_id
        rows += superuser.execute(
            f"SELECT t::text FROM limner.{table} t WHERE {column} = %s ORDER BY 1", [key]
        ).fetchall()
    assert len(rows) >= 5
    return rows


@pytest.mark.parametrize("write", WRITES)
async def test_mj7_an_overtaken_worker_is_refused(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, write: str
) -> None:
    stale, live = await _overtaken(db, tenant)
    before = _everything_about(superuser, stale)

    with pytest.raises(refusals.StaleLease):
        await WRITES[write](db, stale)

    assert _everything_about(superuser, stale) == before
    await acts.start(db, live)
    assert await acts.finish(db, live) == "succeeded"


@pytest.mark.parametrize("write", WRITES)
async def test_mj7_a_worker_is_refused_after_another_finished(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, write: str
) -> None:
    stale, live = await _overtaken(db, tenant)
    await acts.start(db, live)
    await acts.finish(db, live)
    before = _everything_about(superuser, stale)

    with pytest.raises(refusals.StaleLease):
        await WRITES[write](db, stale)

    assert _everything_about(superuser, stale) == before


@pytest.mark.parametrize("write", WRITES)
async def test_mj7_a_worker_is_refused_after_a_cancel_took_its_expired_lease(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, write: str
) -> None:
    stale = await _started(db, tenant)
    await asyncio.sleep(SHORT_S * 1.5)
    assert await acts.cancel(db, tenant, stale.job_id) == "cancelled"
    before = _everything_about(superuser, stale)

    with pytest.raises(refusals.StaleLease):
        await WRITES[write](db, stale)

    assert _everything_about(superuser, stale) == before


@pytest.mark.parametrize("write", WRITES)
async def test_mj7_who_released_can_write_nothing(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, write: str
) -> None:
    """The fence is still the newest; what is missing is the lease."""
    held = await _started(db, tenant, lease_s=60)
    await WRITES["release"](db, held)
    before = _everything_about(superuser, held)

    with pytest.raises(refusals.StaleLease):
        await WRITES[write](db, held)

    assert _everything_about(superuser, held) == before


@pytest.mark.parametrize("fence", [0, -1, 99, None])
@pytest.mark.parametrize("write", WRITES)
async def test_mj7_a_guessed_or_missing_fence_is_refused(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, write: str, fence: int | None
) -> None:
    held = await _started(db, tenant, lease_s=60)
    before = _everything_about(superuser, held)

    with pytest.raises(refusals.StaleLease):
        await WRITES[write](db, replace(held, fence=fence))  # type: ignore[arg-type]

    assert _everything_about(superuser, held) == before


async def test_mj7_a_lease_opens_no_other_organizations_job(db: Database, tenant: Tenant, make_tenant: Any) -> None:
    other = await make_tenant()
    held = await _started(db, tenant, lease_s=60)

    for write in WRITES.values():
        with pytest.raises(refusals.StaleLease):
            await write(db, replace(held, org_id=other.org_id))

    assert (await acts.job(db, tenant, held.job_id)).state == "running"


async def test_mj7_the_heartbeat_says_lost_and_renews_nothing(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    stale, live = await _overtaken(db, tenant)
    before = _everything_about(superuser, stale)

    async with db.system_tx("limner_dispatch", "a test beats") as tx:
        assert await runs.heartbeat(tx, [stale], 3600) == {stale.job_id: "lost"}
        await runs.report_many(tx, [(stale, 99, "stale")])

    assert _everything_about(superuser, stale) == before
    async with db.system_tx("limner_dispatch", "a test beats") as tx:
        assert await runs.heartbeat(tx, [live], 60) == {live.job_id: "ok"}
        await runs.report_many(tx, [(live, 40, "painting")])
    seen = await acts.job(db, tenant, live.job_id)
    assert (seen.percent, seen.stage) == (40, "painting")


async def test_mj7_a_heartbeat_answers_each_lease_for_itself(db: Database, tenant: Tenant) -> None:
    _, live = await _overtaken(db, tenant)
    closed, asked, released = [await _started(db, tenant, lease_s=60) for _ in range(3)]
    await acts.finish(db, closed)
    assert await acts.cancel(db, tenant, asked.job_id) == "requested"
    await WRITES["release"](db, released)

    async with db.system_tx("limner_dispatch", "a test beats") as tx:
        verdicts = await runs.heartbeat(tx, [live, closed, asked, released], 60)

    assert verdicts == {
        live.job_id: "ok", closed.job_id: "lost", asked.job_id: "cancel", released.job_id: "lost",
    }  # fmt: skip


async def test_mj7_a_heartbeat_keeps_a_lease_past_its_first_end(db: Database, tenant: Tenant) -> None:
    held = await _started(db, tenant, lease_s=0.2)

    async with db.system_tx("limner_dispatch", "a test beats") as tx:
        await runs.heartbeat(tx, [held], 60)
    await asyncio.sleep(0.25)

    assert held.job_id not in {x.job_id for x in await acts.claim(db, 100, owner="w2")}
    assert await acts.finish(db, held) == "succeeded"


async def test_mj7_a_slow_worker_that_nobody_overtook_may_still_finish(db: Database, tenant: Tenant) -> None:
    """An expired lease is claimable, not lost: the fence alone decides."""
    held = await _started(db, tenant)
    await asyncio.sleep(SHORT_S * 1.5)

    assert await acts.finish(db, held) == "succeeded"


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
async def test_mj7_finishing_again_by_the_same_fence_is_already_done(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, outcome: runs.Outcome
) -> None:
    """A commit whose answer was lost is sent again: it must neither fail nor count twice."""
    held = await _started(db, tenant, lease_s=60)
    assert await acts.finish(db, held, outcome) == outcome
    before = _everything_about(superuser, held)

    assert await acts.finish(db, held, outcome) == "already"
    for other in {"succeeded", "failed", "cancelled"} - {outcome}:
        with pytest.raises(refusals.StaleLease):
            await acts.finish(db, held, other)  # type: ignore[arg-type]

    assert _everything_about(superuser, held) == before


async def test_mj7_of_many_finishes_by_one_fence_one_settles(db: Database, tenant: Tenant) -> None:
    held = await _started(db, tenant, lease_s=60)

    answers = await acts.together([lambda: acts.finish(db, held)] * 12)

    assert sorted(answers) == ["already"] * 11 + ["succeeded"]
    assert (await acts.wallet(db, tenant)).available_mc == 999 * MC
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj7_a_charge_never_passes_the_hold_and_never_comes_without_usage(db: Database, tenant: Tenant) -> None:
    held = await _started(db, tenant, lease_s=60)

    for charge in (MC + 1, -1, 2**62):
        with pytest.raises(refusals.BadAmount):
            await acts.finish(db, held, charge_mc=charge)
    nothing: list[dict[str, Any]] = []
    for usage in (None, nothing):
        closing = runs.Closing("succeeded", charge_mc=1, outputs=[], usage=usage, provider="local")
        with pytest.raises(refusals.BadAmount):
            await _as_worker(runs.finish, closing)(db, held)

    assert (await acts.job(db, tenant, held.job_id)).state == "running"
    assert await acts.finish(db, held, charge_mc=MC) == "succeeded"


async def test_mj7_an_unknown_job_is_nobodys(db: Database, tenant: Tenant) -> None:
    held = await _started(db, tenant, lease_s=60)

    for write in WRITES.values():
        with pytest.raises(refusals.StaleLease):
            await write(db, replace(held, job_id=ids.new()))
