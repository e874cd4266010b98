"""MJ18: what keeps the queue fast for months: nobody of limner's holds a transaction open, and no write carries a NOTIFY."""

import asyncio
import re

import psycopg
import pytest

from limner.db.pools import Database
from limner.db.wake import CHANNEL
from tests import acts
from tests.alone import superuser_conninfo
from tests.conftest import ROLES, Server, Tenant
from tests.contracts.source import sources

IDLE_S = 10
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
