"""Old inputs and outputs go, objects first; money, usage and receipts stay; nothing young or open is touched."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import jobs, outputs, receipts, runs, schemas
from limner.hub.retention import Retention
from limner.media.store import ObjectStore, StoreUnavailable
from limner.media.urls import MediaUrls
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.fixtures import db_alone, own_store, server_alone, superuser_alone
from tests.web import stored

__all__ = ["db_alone", "own_store", "server_alone", "superuser_alone"]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CANARY = "a very private hare"


@pytest.fixture(autouse=True)
def _only_this_tests_jobs(superuser: psycopg.Connection) -> None:
    acts.empty_queue(superuser)
    superuser.execute("UPDATE limner.app SET keep_days = NULL, keep_jobs = NULL")


async def _delivered(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection, age_days: float, **changes: Any
) -> UUID:
    """A job that delivered a picture and a text so many days ago; a loser of an earlier run lies beside it."""
    job_id = (await acts.submit(db, tenant, body=CANARY, **changes)).job_id
    held = await acts.lease(db, job_id, lease_s=60)
    await acts.start(db, held)
    prefix = outputs.prefix(tenant.org_id, job_id)
    for key in (f"{prefix}{held.fence}/0.png", f"{prefix}0/0.png"):
        await store.put(key, b"picture", "image/png")
    made = [
        {"index": 0, "type": "image", "key": f"{prefix}{held.fence}/0.png"},
        {"index": 1, "type": "text", "text": CANARY},
    ]
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        intent = await runs.intend(tx, held, "main", "local", "m", "priority", resend=False)
        usage = [{"kind": "image", "quantity": 1, "unit": "image", "cost_micro_usd": 7}]
        delivery = runs.Delivery("main", "local", intent.send_no, None, 7, 3)
        closing = runs.Closing(
            "succeeded", charge_mc=1000, outputs=made, provider="local", usage=usage, delivery=delivery
        )
        await runs.finish(tx, held, closing)
    _age(superuser, job_id, age_days)
    return job_id


def _age(superuser: psycopg.Connection, job_id: UUID, days: float) -> None:
    with superuser.transaction():
        superuser.execute("SET LOCAL session_replication_role = replica")
        superuser.execute(
            "UPDATE limner.job SET created_at = created_at - make_interval(secs => %(s)s),"
            " finished_at = finished_at - make_interval(secs => %(s)s) WHERE id = %(job)s",
            {"s": days * 86_400, "job": job_id},
        )


def _keep(superuser: psycopg.Connection, tenant: Tenant, **policy: int) -> None:
    for column, value in policy.items():
        superuser.execute(f"UPDATE limner.app SET {column} = %s WHERE id = %s", [value, tenant.app.id])


async def _erase(db: Database, store: ObjectStore, keep_days: int = 0, keep_jobs: int = 0) -> dict[str, Any]:
    return (await Retention(db, store, keep_days, keep_jobs).erase_old(NOW)).facts


async def _erased(db: Database, tenant: Tenant, *job_ids: UUID) -> list[bool]:
    return [(await acts.job(db, tenant, job_id)).is_erased for job_id in job_ids]


async def test_what_is_older_goes_and_money_does_not_move(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection, server: Server
) -> None:
    _keep(superuser, tenant, keep_days=30)
    old = await _delivered(db, tenant, store, superuser, 31)
    young = await _delivered(db, tenant, store, superuser, 29)
    before = stored.rows(superuser, tenant.org_id)
    async with db.tenant_tx(tenant.org_id) as tx:
        receipt = await receipts.build(tx, await jobs.get(tx, tenant.app.id, old))

    assert await _erase(db, store) == {"erased": 1, "failed": 0}

    assert await _erased(db, tenant, old, young) == [True, False]
    assert await store.list_keys(outputs.prefix(tenant.org_id, old)) == [], "the losers' objects too"
    assert len(await store.list_keys(outputs.prefix(tenant.org_id, young))) == 2
    assert stored.rows(superuser, tenant.org_id) == before
    async with db.tenant_tx(tenant.org_id) as tx:
        job = await jobs.get(tx, tenant.app.id, old)
        assert await receipts.build(tx, job) == receipt
    assert (job.input, job.outputs, job.price_final_mc) == ({}, None, 1000)
    urls = MediaUrls(server.root, db.clock, "http://x", 60)
    body = schemas.job_body(job, urls)
    assert (body["status"], body["erased"], body["tokens_charged"], "outputs" in body) == ("succeeded", True, 1, False)
    assert "erased" not in schemas.job_body(await acts.job(db, tenant, young), urls)
    for table in ("job", "provider_call", "event", "job_input"):
        column = "id" if table == "job" else "subject_id" if table == "event" else "job_id"
        query = f"SELECT count(*) FROM limner.{table} x WHERE x.{column} = %s AND x::text LIKE %s"
        assert acts.count(superuser, query, old, f"%{CANARY}%") == 0, table
    assert await acts.books(db, tenant.org_id) == {}
    assert await _erase(db, store) == {"erased": 0, "failed": 0}


async def test_of_the_newest_jobs_so_many_are_kept(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection
) -> None:
    _keep(superuser, tenant, keep_jobs=2)
    made = [await _delivered(db, tenant, store, superuser, 1) for _ in range(5)]

    assert (await _erase(db, store))["erased"] == 3
    assert await _erased(db, tenant, *made) == [True, True, True, False, False]
    _keep(superuser, tenant, keep_jobs=0)
    assert (await _erase(db, store))["erased"] == 2


async def test_it_stops_at_the_first_that_is_open_or_young_and_goes_on_from_there(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection
) -> None:
    _keep(superuser, tenant, keep_days=1)
    first = await _delivered(db, tenant, store, superuser, 5)
    open_job = (await acts.submit(db, tenant)).job_id
    acts.empty_queue(superuser)
    last = await _delivered(db, tenant, store, superuser, 5)

    assert (await _erase(db, store))["erased"] == 1
    assert await _erased(db, tenant, first, last) == [True, False]
    assert (await acts.job(db, tenant, open_job)).input != {}

    await acts.cancel(db, tenant, open_job)
    _age(superuser, open_job, 5)
    assert (await _erase(db, store))["erased"] == 2
    assert await _erased(db, tenant, first, last) == [True, True]
    assert (await acts.job(db, tenant, open_job)).input == {}


async def test_what_was_only_just_ordered_is_left_alone(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection
) -> None:
    """A submit with a smaller id may still be on its way: nothing would ever erase it."""
    _keep(superuser, tenant, keep_jobs=0)
    fresh = await _delivered(db, tenant, store, superuser, 0)

    assert (await _erase(db, store))["erased"] == 0
    assert await _erased(db, tenant, fresh) == [False]


async def test_the_installations_figures_hold_where_an_app_has_none(
    db: Database, make_tenant: MakeTenant, store: ObjectStore, superuser: psycopg.Connection
) -> None:
    plain, own = await make_tenant(), await make_tenant()
    _keep(superuser, own, keep_days=100)
    theirs = [await _delivered(db, tenant, store, superuser, 50) for tenant in (plain, own)]

    assert (await _erase(db, store))["erased"] == 0, "0 is for ever"
    assert (await _erase(db, store, keep_days=40))["erased"] >= 1

    assert await _erased(db, plain, theirs[0]) == [True]
    assert await _erased(db, own, theirs[1]) == [False]


class FailingStore(ObjectStore):
    """Refuses to delete what belongs to one job."""

    def __init__(self, real: ObjectStore, job_id: UUID) -> None:
        self._real = real
        self._job_id = str(job_id)

    async def list_keys(self, prefix: str) -> list[str]:
        return await self._real.list_keys(prefix)

    async def delete(self, keys: list[str]) -> None:
        if any(self._job_id in key for key in keys):
            raise StoreUnavailable("not now")
        await self._real.delete(keys)


async def test_a_store_that_fails_keeps_the_row_and_is_asked_again(
    db: Database, make_tenant: MakeTenant, store: ObjectStore, superuser: psycopg.Connection
) -> None:
    tenant, other = await make_tenant(), await make_tenant()
    for one in (tenant, other):
        _keep(superuser, one, keep_days=1)
    made = [await _delivered(db, tenant, store, superuser, 5) for _ in range(3)]
    elsewhere = await _delivered(db, other, store, superuser, 5)

    facts = await _erase(db, FailingStore(store, made[1]))

    assert facts["failed"] == 1
    assert await _erased(db, tenant, *made) == [True, False, False]
    assert (await acts.job(db, tenant, made[1])).outputs, "its row still says what there is"
    assert await _erased(db, other, elsewhere) == [True], "another app's is no reason to wait"
    assert (await _erase(db, store))["erased"] == 2
    assert await _erased(db, tenant, *made) == [True, True, True]


async def test_mj4_a_replay_of_an_erased_job_is_still_its_first_answer(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection
) -> None:
    _keep(superuser, tenant, keep_days=1)
    job_id = await _delivered(db, tenant, store, superuser, 5, key="one")
    await _erase(db, store)

    again = await acts.submit(db, tenant, body=CANARY, key="one")

    assert (again.job_id, again.replayed, again.hold_mc) == (job_id, True, 1000)


async def test_more_than_a_batch_is_walked(
    db: Database, tenant: Tenant, store: ObjectStore, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.hub.retention.BATCH", 2)
    _keep(superuser, tenant, keep_days=1)
    made = [await _delivered(db, tenant, store, superuser, 5) for _ in range(5)]

    assert (await _erase(db, store))["erased"] == 5
    assert all(await _erased(db, tenant, *made))


async def test_open_jobs_cannot_be_erased_by_their_id(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    async with db.tenant_single(tenant.org_id, "limner_worker") as tx:
        row = await tx.get("SELECT limner.erase_jobs(%s, %s, %s::uuid[]) AS n", [tx.ctx, tenant.app.id, [job_id]])

    assert row["n"] == 0
    assert (await acts.job(db, tenant, job_id)).input == {"prompt": "a hare"}
    assert (
        acts.count(
            superuser, "SELECT count(*) FROM limner.app WHERE id = %s AND erased_to > %s", tenant.app.id, UUID(int=0)
        )
        == 0
    )
