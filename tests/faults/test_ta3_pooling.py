"""TA3: tenants that share one server connection through PgBouncer never see each other, whatever becomes of their turns."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from limner.db.context import ContextSigner
from limner.db.pools import Database
from limner.db.tx import Tx
from limner.hub import jobs
from limner.kit import ids
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.faults import bouncer

ROLE = "limner_api"
CLIENTS = 12
SEEN = "SELECT org_id, external_id, pg_backend_pid() AS pid FROM limner.end_user"
FAULTY = 0.1
NO_CONTEXT = "LM001"


class Regret(Exception):
    """What a caller raises in the middle of its transaction."""


@pytest_asyncio.fixture
async def pooled(server: Server, db: Database) -> AsyncIterator[Database]:
    """A dozen clients' connections over one connection to the server."""
    with bouncer.running(server, pool_size=1) as one:
        database = Database(one.address, server.root, (ROLE,), size=CLIENTS)
        await database.open()
        yield database
        await database.close()


class Turns:
    """What may happen in a turn; each looks at what the turn before it may have left on the connection."""

    def __init__(self, db: Database, tenants: list[Tenant]) -> None:
        self.db = db
        self.tenants = tenants
        self.placed: dict[UUID, UUID] = {}
        self.count: Counter[str] = Counter()
        self.pids: set[int] = set()
        self.hung_up = 0
        self.foreign: list[tuple[UUID | None, Any]] = []

    async def any(self) -> None:
        tenant = random.choice(self.tenants)
        usual = (self.read, self.read, self.replay, self.without_context)
        odd = (self.cancelled, self.late, self.statement_timeout, self.raising, self.failing)
        turn: Callable[[Tenant], Awaitable[None]] = random.choice(odd if random.random() < FAULTY else usual)
        await turn(tenant)
        self.count[turn.__name__] += 1

    async def look(self, tx: Tx, tenant: Tenant) -> None:
        """Own rows, all of them, nobody else's."""
        rows = await tx.all(SEEN)
        self.pids |= {row["pid"] for row in rows}
        if [(row["org_id"], row["external_id"]) for row in rows] != [(tenant.org_id, "ann")]:
            self.foreign.append((tenant.org_id, rows))

    async def read(self, tenant: Tenant) -> None:
        async with self.db.tenant_tx(tenant.org_id) as tx:
            await self.look(tx, tenant)
            await asyncio.sleep(0)
            await self.look(tx, tenant)

    async def replay(self, tenant: Tenant) -> None:
        """The form whose context travels inside its one statement."""
        async with self.db.tenant_single(tenant.org_id) as tx:
            found = await jobs.submit(tx, ids.new(), acts.request(tenant, key="again"), again=True)
        if not found.replayed or self.placed[tenant.org_id] != found.job_id:
            self.foreign.append((tenant.org_id, found))

    async def without_context(self, _: Tenant) -> None:
        """Neither somebody's rows nor no rows: an error."""
        with pytest.raises(psycopg.Error) as caught:
            async with self.db.system_tx(ROLE, "a test forgets the context") as tx:
                self.foreign.append((None, await tx.all(SEEN)))
        assert caught.value.sqlstate == NO_CONTEXT

    async def cancelled(self, tenant: Tenant) -> None:
        """At any moment: before the context is set, with a statement under way, or as it ends."""
        task = asyncio.create_task(self.doze(tenant))
        await asyncio.sleep(random.choice((0, random.uniform(0, 0.03))))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def late(self, tenant: Tenant) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0.001, 0.03)):
                await self.doze(tenant)

    async def doze(self, tenant: Tenant) -> None:
        async with self.db.tenant_tx(tenant.org_id) as tx:
            await self.look(tx, tenant)
            await tx.find("SELECT pg_sleep(0.01)")
            await self.look(tx, tenant)

    async def statement_timeout(self, tenant: Tenant) -> None:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await self.asking(tenant, "SELECT set_config('statement_timeout', '2ms', true)", "SELECT pg_sleep(5)")

    async def raising(self, tenant: Tenant) -> None:
        with contextlib.suppress(Regret):
            async with self.db.tenant_tx(tenant.org_id) as tx:
                await self.look(tx, tenant)
                raise Regret

    async def failing(self, tenant: Tenant) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await self.asking(tenant, "SELECT 1 / 0")

    async def asking(self, tenant: Tenant, *statements: str) -> None:
        async with self.db.tenant_tx(tenant.org_id) as tx:
            for statement in statements:
                await tx.find(statement)


@pytest.mark.parametrize("transactions", [2000, pytest.param(20_000, marks=pytest.mark.long)])
async def test_ta3_interleaved_tenants_on_one_server_connection_never_meet(
    db: Database, pooled: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, transactions: int
) -> None:
    turns = Turns(pooled, [await make_tenant() for _ in range(5)])
    for tenant in turns.tenants:
        turns.placed[tenant.org_id] = (await acts.submit(db, tenant, key="again")).job_id
    left = iter(range(transactions))

    async def client() -> None:
        for _ in left:
            try:
                await turns.any()
            except psycopg.OperationalError as error:
                if error.sqlstate is not None and "query_wait_timeout" not in str(error):
                    raise  # somebody else's answer, perhaps
                turns.hung_up += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))

    assert turns.foreign == []
    assert turns.count.total() == transactions
    assert len(turns.count) == 8, "every kind of turn was taken"
    assert turns.hung_up <= max(2 * CLIENTS, transactions // 100), "those who waited too long for its one connection"
    for tenant in turns.tenants:
        query = "SELECT count(*) FROM limner.job WHERE org_id = %s"
        assert acts.count(superuser, query, tenant.org_id) == 1
        assert await acts.books(db, tenant.org_id) == {}
    print(f"{dict(turns.count)}, {len(turns.pids)} server processes one after the other")


async def test_ta3_a_context_set_for_the_session_would_be_found(
    server: Server, pooled: Database, make_tenant: MakeTenant
) -> None:
    """The control: everybody shares one server connection, and what a session keeps is there for the next."""
    tenant = await make_tenant()
    signed = ContextSigner(server.root, pooled.clock).sign(tenant.org_id)
    async with pooled.tenant_tx(tenant.org_id) as tx:
        await tx.find("SELECT set_config('limner.ctx', %s, false)", [signed])
    turns = Turns(pooled, [tenant])

    with pytest.raises(pytest.fail.Exception):
        await turns.without_context(tenant)

    [(_, rows)] = turns.foreign
    assert [row["org_id"] for row in rows] == [tenant.org_id]
