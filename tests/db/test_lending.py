"""Which connection a statement gets, and that nobody waits for one that lies at hand."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from limner.db import lending
from limner.db.pools import Database, DatabaseUnavailable
from tests import acts
from tests.conftest import Server, Tenant, opened
from tests.faults.cluster import eventually

PID = "SELECT pg_backend_pid() AS pid, %s::text AS a"
MANY = 40


@pytest_asyncio.fixture
async def three(server: Server) -> AsyncIterator[Database]:
    """At most three connections of a role."""
    async with opened(server, 3, sells=False) as database:
        yield database


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


async def test_one_that_nobody_needed_goes_back_to_the_pool(three: Database, tenant: Tenant) -> None:
    await _all_open(three, tenant)
    lent = three._lending["limner_api"]
    assert lent.at_hand == 3

    lent._at_hand[0].lent_at -= lending.RETURN_AFTER_S
    await _pid(three, tenant)

    assert lent.at_hand == 2


async def test_who_waits_is_served_before_any_is_kept(server: Server, tenant: Tenant) -> None:
    async def in_a_transaction(database: Database) -> int:
        async with database.tenant_tx(tenant.org_id) as tx:
            return int((await tx.get(PID, ["x"]))["pid"])

    async with opened(server, 1, sells=False) as one:
        pids = await asyncio.gather(
            *(in_a_transaction(one) if n % 2 else _pid(one, tenant) for n in range(MANY)), return_exceptions=True
        )

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
    async with opened(server, 3, sells=False) as database:
        pid = await _pid(database, tenant)

    with pytest.raises((DatabaseUnavailable, psycopg.OperationalError)):
        await _pid(database, tenant)
    with psycopg.connect(server.embedded.superuser_conninfo(), autocommit=True) as conn:
        await eventually(lambda: acts.count(conn, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid) == 0, 5)
