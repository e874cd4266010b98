"""The worker's duties: the books are checked and what is broken is said aloud; losers' objects go, winners' stay."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import structlog
from prometheus_client import REGISTRY

from limner.db.pools import Database
from limner.hub import chores as hub_chores
from limner.hub.chores import HubChores
from limner.hub.executor import Run
from limner.kit.cpu import CpuPool
from limner.media.store import ObjectMissing, ObjectStore, StoreUnavailable
from limner.tasks import chores
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.hub.doubles import Scripted, Shop, open_shop, pictures, png
from tests.hub.fixtures import db_alone, own_pool, own_store, server_alone, superuser_alone

__all__ = ["db_alone", "own_pool", "own_store", "server_alone", "superuser_alone"]

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
PICTURE = pictures(png())


@pytest.fixture
def said() -> Iterator[list[Any]]:
    """What is logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def _duties(db: Database, store: ObjectStore, sweep_after_s: int = 1) -> HubChores:
    return HubChores(db, store, sweep_after_s)


def _violations() -> float:
    value = REGISTRY.get_sample_value("limner_invariant_violations")
    assert value is not None
    return value


# The books


async def test_honest_books_are_found_so(db: Database, tenant: Tenant, store: ObjectStore) -> None:
    for _ in range(3):
        await acts.work(db, (await acts.submit(db, tenant)).job_id)
    held = await acts.submit(db, tenant, price=4)

    done = await _duties(db, store).check_books(LONG_AGO)

    assert done.facts["violations"] == 0
    assert done.facts["checked"] >= 5
    assert not done.again
    assert (done.facts["open_holds"], done.facts["held_mc"]) == (1, 4000)
    await acts.work(db, held.job_id)


PLANTS = {
    "credits out of nothing": "UPDATE limner.wallet SET available_mc = available_mc + 1 WHERE org_id = %(org)s AND owner = 'end_user'",
    "a job closed without a charge": "UPDATE limner.job SET price_final_mc = 0 WHERE org_id = %(org)s AND state = 'succeeded'",
    "a settled hold that vanished": "DELETE FROM limner.transfer WHERE org_id = %(org)s AND kind = 'post'",
    "a job that lost its queue row": "DELETE FROM limner.job_queue WHERE org_id = %(org)s",
    "a terminal event that is missing": "DELETE FROM limner.event WHERE org_id = %(org)s AND type = 'job.completed'",
}


@pytest.mark.parametrize("plant", PLANTS)
async def test_a_violation_is_an_error_in_the_log_and_a_metric_until_it_is_repaired(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection, said: list[Any], plant: str
) -> None:
    await acts.work(db, (await acts.submit(db, tenant)).job_id)
    await acts.submit(db, tenant)
    since = datetime.now(UTC) - timedelta(seconds=5)
    duties = _duties(db, store)
    before = _snapshot(superuser, tenant.org_id)
    superuser.execute("SET session_replication_role = replica")
    try:
        assert superuser.execute(PLANTS[plant], {"org": tenant.org_id}).rowcount > 0

        found = await duties.check_books(since)
        again = await duties.check_books(since)
    finally:
        _restore(superuser, tenant.org_id, before)
        superuser.execute("SET session_replication_role = origin")

    assert found.facts["violations"] >= 1
    assert found.again, "the next check looks at the same span once more"
    assert again.facts["violations"] == found.facts["violations"]
    errors = [line for line in said if line["event"] == "invariants.violated"]
    assert [line["log_level"] for line in errors] == ["error", "error"]
    assert errors[0]["example"]
    repaired = await duties.check_books(since)
    assert (repaired.facts["violations"], repaired.again, _violations()) == (0, False, 0)


async def test_the_metric_carries_the_violation(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection
) -> None:
    superuser.execute("SET session_replication_role = replica")
    change = "UPDATE limner.wallet SET available_mc = available_mc + %s WHERE org_id = %s AND owner = 'end_user'"
    superuser.execute(change, [7, tenant.org_id])

    await _duties(db, store).check_books(LONG_AGO)
    seen = _violations()
    superuser.execute(change, [-7, tenant.org_id])
    superuser.execute("SET session_replication_role = origin")
    await _duties(db, store).check_books(LONG_AGO)

    assert (seen, _violations()) == (1, 0)


async def test_a_minutes_changes_are_checked_in_a_fraction_of_a_second(
    db: Database, make_tenant: MakeTenant, store: ObjectStore
) -> None:
    tenant = await make_tenant(credits=10_000)
    for _ in range(150):
        await asyncio.gather(*(acts.submit(db, tenant) for _ in range(10)))
    duties = _duties(db, store)

    began = time.monotonic()
    done = await duties.check_books(datetime.now(UTC) - timedelta(seconds=30))
    took_s = time.monotonic() - began

    assert done.facts["checked"] > 1500
    assert took_s < 1.0, f"{took_s:.3f} s for {done.facts['checked']} things"


# Losers' objects


async def _worked(db: Database, tenant: Tenant, store: ObjectStore, pool: CpuPool) -> tuple[Shop, dict[str, UUID]]:
    """Four ends of a job that leave objects: won at once, won after a lost run, cancelled, failed."""
    here = await open_shop(db, tenant, store, pool, Scripted("painter", PICTURE))
    jobs = {}
    jobs["first"] = await here.submit()
    await here.run(jobs["first"])
    for name in ("second", "cancelled", "failed"):
        jobs[name] = job_id = await here.submit(max_runs=1 if name == "failed" else 3)
        stale = Run(here.resources, await here.lease(job_id, lease_s=0.05))
        await stale.decide()
        await store.put(f"outputs/{tenant.org_id}/{job_id}/1/7.png", png(), "image/png")  # a loser's
        await asyncio.sleep(0.06)
        if name == "cancelled":
            await acts.cancel(db, tenant, job_id)
        else:
            await here.run(job_id)
    return here, jobs


async def test_losers_objects_are_deleted_a_day_later_and_only_those(
    db: Database, tenant: Tenant, make_tenant: MakeTenant, store: ObjectStore, pool: CpuPool
) -> None:
    here, jobs = await _worked(db, tenant, store, pool)
    neighbour, theirs = await _worked(db, await make_tenant(), store, pool)
    open_job = await here.submit()
    await store.put(f"outputs/{tenant.org_id}/{open_job}/1/0.png", png(), "image/png")
    kept = {name: (await here.job(job_id)).outputs or [] for name, job_id in jobs.items()}
    assert [len(kept[name]) for name in ("first", "second", "cancelled", "failed")] == [1, 1, 0, 0]

    early = await _duties(db, store, sweep_after_s=3600).sweep_losers(LONG_AGO)
    assert early.facts["deleted"] == 0, "a day is not over"
    await asyncio.sleep(1.05)
    done = await _duties(db, store).sweep_losers(LONG_AGO)
    again = await _duties(db, store).sweep_losers(LONG_AGO)

    left = {name: await store.list_keys(f"outputs/{tenant.org_id}/{job_id}/") for name, job_id in jobs.items()}
    assert left == {name: [output["key"] for output in outputs] for name, outputs in kept.items()}
    assert [len(keys) for keys in left.values()] == [1, 1, 0, 0]
    assert len(await store.list_keys(f"outputs/{tenant.org_id}/{open_job}/")) == 1, "a job in progress is not over"
    for name in ("first", "second"):
        (output,) = (await neighbour.job(theirs[name])).outputs or []
        assert await store.list_keys(f"outputs/{neighbour.tenant.org_id}/{theirs[name]}/") == [output["key"]]
    # of both tenants: what the runs before the winner's left, and everything of the two jobs without a success
    assert (done.facts, again.facts) == ({"deleted": 2 * 6, "failed": 0}, {"deleted": 0, "failed": 0})
    await acts.cancel(db, tenant, open_job)


async def test_the_sweep_does_not_stop_at_its_first_page(
    db: Database, tenant: Tenant, store: ObjectStore, pool: CpuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_chores, "SWEEP_BATCH", 3)
    here = await open_shop(db, tenant, store, pool, Scripted("painter", PICTURE))
    jobs = [await here.submit() for _ in range(8)]
    for job_id in jobs:
        await store.put(f"outputs/{tenant.org_id}/{job_id}/1/0.png", png(), "image/png")
        await acts.cancel(db, tenant, job_id)
    await asyncio.sleep(1.05)

    await _duties(db, store).sweep_losers(LONG_AGO)

    assert [await store.list_keys(f"outputs/{tenant.org_id}/{job_id}/") for job_id in jobs] == [[]] * 8


async def test_a_store_that_fails_for_one_organization_is_asked_again_and_does_not_stop_the_others(
    db: Database, tenant: Tenant, make_tenant: MakeTenant, tmp_path: Path, pool: CpuPool, said: list[Any]
) -> None:
    class Refusing(ObjectStore):
        async def delete(self, keys: list[str]) -> None:
            if any(str(tenant.org_id) in key for key in keys):
                raise StoreUnavailable("403 Forbidden")
            await super().delete(keys)

    store = Refusing(None, tmp_path)
    _, mine = await _worked(db, tenant, store, pool)
    other, theirs = await _worked(db, await make_tenant(), store, pool)
    await asyncio.sleep(1.05)

    done = await _duties(db, store).sweep_losers(LONG_AGO)

    assert done.facts["failed"] == 1
    assert [line["org"] for line in said if line["event"] == "sweep.postponed"] == [tenant.org_id]
    assert await store.list_keys(f"outputs/{tenant.org_id}/{mine['cancelled']}/") != []
    assert await store.list_keys(f"outputs/{other.tenant.org_id}/{theirs['cancelled']}/") == []


# The store itself


async def test_what_a_store_does_not_have_is_missing_and_what_it_cannot_do_is_unavailable(
    tmp_path: Path, store: ObjectStore
) -> None:
    await store.put("outputs/a/1.png", b"bytes", "image/png")
    assert await store.read("outputs/a/1.png") == b"bytes"
    with pytest.raises(ObjectMissing):
        await store.read("outputs/a/2.png")
    await store.delete(["outputs/a/2.png", "outputs/a/1.png"])
    assert await store.list_keys("outputs/a/") == []

    folder = tmp_path / "objects" / "outputs"
    (folder / "a").rmdir()
    folder.rmdir()
    folder.write_text("a file where a folder should be")
    with pytest.raises(StoreUnavailable):
        await store.put("outputs/a/1.png", b"bytes", "image/png")
    with pytest.raises(StoreUnavailable):
        await store.list_keys("outputs/a/")


# Who does a duty, and when


async def test_a_duty_is_done_by_one_of_many_workers_and_again_when_it_is_due(db: Database) -> None:
    seen: list[datetime] = []

    async def work(since: datetime) -> chores.Done:
        seen.append(since)
        await asyncio.sleep(0.05)
        return chores.Done({"n": len(seen)})

    duty = chores.Chore(f"duty-{time.monotonic_ns()}", 0.5, work)

    first = await acts.together([lambda: chores.do_if_due(db, duty)] * 10)
    early = await chores.do_if_due(db, duty)
    await asyncio.sleep(0.55)
    second = await acts.together([lambda: chores.do_if_due(db, duty)] * 10)

    assert (sorted(first), early, sorted(second)) == ([False] * 9 + [True], False, [False] * 9 + [True])
    assert seen[0] == LONG_AGO
    assert timedelta(seconds=0.4) < datetime.now(UTC) - seen[1] < timedelta(seconds=3), "up to where it was done before"
    assert (await chores.last_results(db))[duty.name]["n"] == 2


async def test_a_duty_that_says_again_or_fails_looks_at_the_same_span_once_more(db: Database) -> None:
    seen: list[datetime] = []

    async def work(since: datetime) -> chores.Done:
        seen.append(since)
        if len(seen) == 2:
            raise RuntimeError("broken")
        return chores.Done({}, again=len(seen) == 1)

    duty = chores.Chore(f"duty-{time.monotonic_ns()}", 0.0, work)
    await chores.do_if_due(db, duty)
    with pytest.raises(RuntimeError):
        await chores.do_if_due(db, duty)
    await chores.do_if_due(db, duty)
    await chores.do_if_due(db, duty)

    assert seen[:3] == [LONG_AGO] * 3
    assert seen[3] > LONG_AGO


async def test_duties_survive_their_own_failures_and_do_not_wait_for_each_other(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "TICK_S", 0.01)
    done: list[str] = []

    async def endless(_: datetime) -> chores.Done:
        await asyncio.sleep(3600)
        return chores.Done({})

    async def shaky(_: datetime) -> chores.Done:
        done.append("shaky")
        if len(done) == 1:
            raise psycopg.OperationalError("away")
        if len(done) == 2:
            raise KeyError("a mistake")
        return chores.Done({})

    stamp = time.monotonic_ns()
    task = asyncio.create_task(
        chores.run_forever(db, [chores.Chore(f"a-{stamp}", 0.0, endless), chores.Chore(f"b-{stamp}", 0.0, shaky)])
    )
    try:
        async with asyncio.timeout(5):
            while len(done) < 5:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


TABLES = ("wallet", "job", "job_queue", "event", "transfer")


def _snapshot(conn: psycopg.Connection, org_id: UUID) -> dict[str, list[str]]:
    return {
        name: [
            row[0] for row in conn.execute(f"SELECT to_jsonb(x)::text FROM limner.{name} x WHERE org_id = %s", [org_id])
        ]
        for name in TABLES
    }


def _restore(conn: psycopg.Connection, org_id: UUID, rows: dict[str, list[str]]) -> None:
    """As it was, so that later tests find honest books."""
    for name in TABLES:
        conn.execute(f"DELETE FROM limner.{name} WHERE org_id = %s", [org_id])
        for row in rows[name]:
            conn.execute(
                f"INSERT INTO limner.{name} SELECT * FROM jsonb_populate_record(NULL::limner.{name}, %s)", [row]
            )
