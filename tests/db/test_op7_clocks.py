"""OP7: wrong clocks change nothing. Leases, deadlines and contexts are judged by the database's clock alone."""

import asyncio
import datetime
import time

import psycopg
import pytest

from limner.db.context import LIFE_S, ContextSigner, DatabaseClock
from limner.db.pools import Address, Database, runtime_conninfo
from tests import acts
from tests.conftest import ROLES, Server, Tenant

HOUR = 3600.0


@pytest.mark.parametrize("wrong_by", [HOUR, -HOUR])
async def test_op7_a_machine_an_hour_wrong_makes_no_wrong_lease_decision(
    server: Server,
    db: Database,
    tenant: Tenant,
    superuser: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    wrong_by: float,
) -> None:
    """Its wall clock is wrong from the start: contexts are good, live leases are respected, ended ones are taken."""
    acts.empty_queue(superuser)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by)
    monkeypatch.setattr(
        datetime,
        "datetime",
        type(
            "Wrong",
            (datetime.datetime,),
            {"now": classmethod(lambda cls, tz=None: datetime.datetime.fromtimestamp(time.time(), tz))},
        ),
    )
    wrong = Database(Address(server.url), server.root, ROLES, size=2)
    await wrong.open()
    try:
        job_id = (await acts.submit(wrong, tenant)).job_id
        held = await acts.lease(db, job_id, owner="right", lease_s=0.3)
        assert await acts.claim(wrong, 5, owner="wrong") == []
        await asyncio.sleep(0.35)
        taken = await acts.lease(wrong, job_id, owner="wrong", lease_s=60)
        assert (taken.fence, taken.exhausted) == (held.fence + 1, None)
        assert 3590 < taken.deadline_in_s < 3600
        await acts.start(wrong, taken)
        assert await acts.finish(wrong, taken) == "succeeded"
    finally:
        await wrong.close()
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.parametrize("drift", [HOUR, -HOUR])
async def test_op7_a_clock_that_jumps_is_right_again_after_the_next_look(
    server: Server, db: Database, monkeypatch: pytest.MonkeyPatch, drift: float
) -> None:
    """Even the monotonic clock may lie (a suspended machine): `sync_clock` each minute puts the contexts right."""
    right, jump = time.monotonic, 0.0
    monkeypatch.setattr("limner.db.context.time.monotonic", lambda: right() + jump)
    clock = DatabaseClock()
    clock.sync(time.time())
    jump = drift
    assert abs(clock.now() - time.time()) > 3000

    clock.sync(time.time())

    assert abs(clock.now() - time.time()) < 1


async def test_op7_a_context_lives_a_minute_of_the_databases_time(server: Server, db: Database, tenant: Tenant) -> None:
    fresh, stale = DatabaseClock(), DatabaseClock()
    fresh.sync(db.clock.now() - LIFE_S + 2)
    stale.sync(db.clock.now() - LIFE_S - 1)

    def look(clock: DatabaseClock) -> int:
        with psycopg.connect(runtime_conninfo(server.url, "limner_api", server.root)) as conn:
            conn.execute(
                "SELECT set_config('limner.ctx', %s, true)", [ContextSigner(server.root, clock).sign(tenant.org_id)]
            )
            return acts.count(conn, "SELECT count(*) FROM limner.app")

    assert look(fresh) == 1
    with pytest.raises(psycopg.Error, match="expired"):
        look(stale)


def test_op7_an_unread_clock_is_not_guessed() -> None:
    with pytest.raises(RuntimeError, match="never read"):
        DatabaseClock().now()
