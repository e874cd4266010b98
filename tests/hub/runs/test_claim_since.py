"""A claim that begins behind what is dead takes what any other would; what is older and came late waits for a whole look."""

from uuid import UUID

import psycopg

from limner.db.pools import Database
from limner.hub import runs
from tests import acts
from tests.conftest import MakeTenant, Tenant

YEARS_OLD = UUID("01900000-0000-7000-8000-000000000001")
"""As a machine names a job whose clock is wrong by years."""


async def _since(db: Database) -> UUID:
    async with db.system_tx("limner_dispatch", "a test asks") as tx:
        return await runs.ready_since(tx)


async def _claim(db: Database, since: UUID | None) -> set[UUID]:
    async with db.system_tx("limner_dispatch", "a test claims") as tx:
        return {held.job_id for held in await runs.claim(tx, "w1", 100, 60.0, since=since)}


async def test_whatever_is_ready_is_not_older(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    ready = set()
    for tenant in [await make_tenant() for _ in range(3)]:
        ready |= {(await acts.submit(db, tenant, priority=priority)).job_id for priority in (5, 50)}
    ready.add((await acts.submit(db, tenant, job_id=YEARS_OLD, priority=50)).job_id)

    since = await _since(db)

    assert since == YEARS_OLD
    assert await _claim(db, since) == ready


async def test_where_nothing_is_ready_a_minute_stays_in_sight(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    before = (await acts.submit(db, tenant)).job_id
    await _claim(db, None)
    since = await _since(db)
    after = (await acts.submit(db, tenant)).job_id
    late = (await acts.submit(db, tenant, job_id=UUID(int=YEARS_OLD.int + 1))).job_id

    assert since < before
    assert await _claim(db, since) == {after}
    assert await _claim(db, since) == set()
    assert await _claim(db, None) == {late}
