"""Which connection a statement gets, and that nobody waits for one that lies at hand."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from limner.db import lending
from limner.db.pools import Address, Database, DatabaseUnavailable
from tests.conftest import Server, Tenant

PID = "SELECT pg_backend_pid() AS pid, %s::text AS a"
MANY = 40


@pytest_asyncio.fixture
async def three(server: Server) -> AsyncIterator[Database]:
    """A database of at most three connections, all of them open."""
    database = Database(Address(server.url), server.root, ("limner_api",), size=3)
    await database.open()
    yield database
    await database.close()


async def _pid(database: Database, tenant: Tenant) -> int:
    async with database.tenant_single(tenant.org_id) as tx:
        return int((await tx.get(PID, ["x"]))["pid"])


async def _all_open(database: Database, tenant: Tenant) -> set[int]:
    """The server processes of three transactions that last as long as one another."""
    together = asyncio.Barrier(3)

    async def one() -> int:
        async with database.tenant_tx(tenant.org_id) as tx:
            pid = int((await tx.get(PID, ["x"]))["pid"])
            await together.wait()
            return pid

    return set(await asyncio.gather(one(), one(), one()))


async def test_statements_one_after_another_go_to_the_same_server_process(three: Database, tenant: Tenant) -> None:
    assert len(await _all_open(three, tenant)) == 3

    assert len({await _pid(three, tenant) for _ in range(10)}) == 1


async def test_the_pool_sees_a_connection_again(
    three: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = await _all_open(three, tenant)
    monkeypatch.setattr(lending, "RETURN_AFTER_S", 0.0)

    assert {await _pid(three, tenant) for _ in range(10)} == everyone


async def test_who_waits_is_served_before_any_is_kept(server: Server, tenant: Tenant) -> None:
    database = Database(Address(server.url), server.root, ("limner_api",), size=1)
    await database.open()

    async def in_a_transaction() -> int:
        async with database.tenant_tx(tenant.org_id) as tx:
            return int((await tx.get(PID, ["x"]))["pid"])

    pids = await asyncio.gather(
        *(in_a_transaction() if n % 2 else _pid(database, tenant) for n in range(MANY)), return_exceptions=True
    )
    await database.close()

    assert len(set(pids)) == 1, "forty users of one connection, and none of them waited in vain"


async def test_one_that_died_at_hand_is_not_handed_out(
    three: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    first = await _pid(three, tenant)
    superuser.execute("SELECT pg_terminate_backend(%s, 5000)", [first])

    assert await _pid(three, tenant) != first


async def test_a_transaction_that_broke_off_leaves_nothing_behind(three: Database, tenant: Tenant) -> None:
    for _ in range(4):
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with three.tenant_tx(tenant.org_id) as tx:
                await tx.find("SELECT 1 / %s AS n", [0])
    async with three.tenant_single(tenant.org_id) as tx:
        told = await tx.get("SELECT current_setting('limner.ctx', true) AS ctx, %s::text AS a", ["x"])

    assert not told["ctx"]


async def test_a_closed_database_has_no_connections(server: Server, tenant: Tenant) -> None:
    database = Database(Address(server.url), server.root, ("limner_api",), size=3)
    await database.open()
    pid = await _pid(database, tenant)
    await database.close()

    with pytest.raises((DatabaseUnavailable, psycopg.OperationalError)):
        await _pid(database, tenant)
    with psycopg.connect(server.embedded.superuser_conninfo(), autocommit=True) as conn:
        for _ in range(100):
            left = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
            if left == (0,):
                break
            await asyncio.sleep(0.05)
    assert left == (0,)
