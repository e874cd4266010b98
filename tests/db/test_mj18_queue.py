"""MJ18: what keeps the queue fast for months: nobody of limner's holds a transaction open, and no write carries a NOTIFY."""

import asyncio
import re

import psycopg
import pytest

from limner.db.pools import Database
from limner.db.wake import CHANNEL
from limner.hub import runs
from limner.hub.sharing import SharedWrites
from limner.kit import ids
from limner.kit.money import MC
from tests import acts
from tests.alone import superuser_conninfo
from tests.conftest import ROLES, Server, Tenant
from tests.contracts.source import sources

IDLE_S = 10
DEAD = 20_000
"""Rows: many times what the planner itself looks at when it asks an index for its ends."""
NOTIFIES = re.compile(r"\b(pg_)?notify\b", re.IGNORECASE)
BODIES = "SELECT p.proname, p.prosrc FROM pg_proc p WHERE p.pronamespace = 'limner'::regnamespace"


async def test_mj18_a_transaction_that_stands_idle_is_ended_for_every_runtime_role(
    db: Database, server: Server
) -> None:
    """Beside them one that may stand: a backup's session is not limner's."""

    async def stand(role: str) -> None:
        async with db.system_tx(role, "a test stands still") as tx:
            assert await tx.get("SELECT current_user::text AS role") == {"role": role}
            await asyncio.sleep(IDLE_S + 1)
            await tx.get("SELECT 1 AS one")

    async def stand_and_go_on(role: str) -> None:
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            await stand(role)
        async with db.system_tx(role, "a test goes on") as tx:
            assert await tx.get("SELECT 1 AS one") == {"one": 1}

    async with await psycopg.AsyncConnection.connect(superuser_conninfo(server)) as other:
        await other.execute("SELECT count(*) FROM limner.job_queue")
        await asyncio.gather(*(stand_and_go_on(role) for role in ROLES))
        await other.execute("SELECT 1")


async def test_mj18_no_write_carries_a_notify(
    db: Database, server: Server, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    """Such a commit waits for every other one: a NOTIFY is a statement of its own, and one file sends it."""
    bodies = superuser.execute(BODIES).fetchall()
    assert len(bodies) > 40
    assert [name for name, body in bodies if NOTIFIES.search(body)] == []
    sending = re.compile(r"""["'(]\s*(NOTIFY\b|SELECT\s+pg_notify)|pg_notify\(""")
    assert [source.name for source in sources() if sending.search(source.text)] == ["db/wake.py"]

    async with await psycopg.AsyncConnection.connect(superuser_conninfo(server), autocommit=True) as listener:
        await listener.execute(f"LISTEN {CHANNEL}")
        await acts.work(db, (await acts.submit(db, tenant)).job_id)
        await listener.execute(f"NOTIFY {CHANNEL}, 'the last'")
        async for heard in listener.notifies(timeout=5, stop_after=1):
            assert heard.payload == "the last", "a job's life notified by itself"
            return
    pytest.fail("the listener hears nothing")


async def test_mj18_dead_rows_are_passed_by_however_empty_the_queue_seems(
    server: Server, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    """Beside a transaction that keeps all that died: no claim, heartbeat or finish reads an index from end to end."""
    scans = "(SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'limner.job_queue'::regclass)"
    read = f"SELECT sum(idx_tup_read) + {DEAD} * {scans} FROM pg_stat_user_indexes WHERE relid = 'limner.job_queue'::regclass"
    usage = [{"kind": "image", "quantity": 1, "unit": "image"}]
    closing = runs.Closing("succeeded", charge_mc=MC, outputs=[], provider="local", usage=usage)
    acts.empty_queue(superuser)
    async with await psycopg.AsyncConnection.connect(superuser_conninfo(server)) as holder:
        await holder.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await holder.execute("SELECT count(*) FROM limner.job_queue")
        superuser.execute("SET session_replication_role = replica")
        superuser.execute(
            "INSERT INTO limner.job_queue (org_id, job_id, app_id, priority, max_runs, deadline_at, wallet_id, hold_mc)"
            " SELECT %s, limner._new_id(), %s, 10, 3, now() + interval '1 day', %s, 0 FROM generate_series(1, %s)",
            [tenant.org_id, tenant.app.id, tenant.org_id, DEAD],
        )
        superuser.execute(
            "UPDATE limner.job_queue SET phase = 'leased', fence = 1, runs = 1, lease_owner = 'x', claimable_at = now() - interval '1 hour'"
        )
        superuser.execute("DELETE FROM limner.job_queue")
        superuser.execute("SET session_replication_role = origin")
        since = ids.new()
        superuser.execute("VACUUM ANALYZE limner.job_queue")
        made = [(await acts.submit(db, tenant)).job_id for _ in range(3)]
        acts.end_sessions(superuser)
        superuser.execute("SELECT pg_stat_force_next_flush()")

        before = acts.count(superuser, read)
        async with db.system_tx("limner_dispatch", "a test claims") as tx:
            leases = await runs.claim(tx, "w1", 10, 60, None, 5, since)
            assert {lease.job_id for lease in leases} == set(made)
            assert set((await runs.heartbeat(tx, leases, 60)).values()) == {"ok"}
            await runs.report_many(tx, [(lease, 50, "halfway") for lease in leases])
        shared = SharedWrites(db)
        assert None not in await asyncio.gather(*(shared.start(lease) for lease in leases))
        assert await asyncio.gather(*(shared.finish(lease, closing) for lease in leases)) == [True] * 3
        acts.end_sessions(superuser)
        assert acts.count(superuser, read) - before < DEAD
