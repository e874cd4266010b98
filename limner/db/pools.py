"""One small pool per role, over one PostgreSQL: `Database.open(settings, root, …)`.

An operator hands over one URL and one key: the address of every run-time role follows from them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from limner.db.context import ContextSigner, DatabaseClock
from limner.db.lending import Lending, stirred
from limner.db.tx import Pooled, Single, Tx
from limner.kit import crypto

CONNECT_TIMEOUT_S = 5
CLOCK_EVERY_S = 30.0
POOL_WAIT_S = 4.0


class DatabaseUnavailable(Exception):
    """No connection could be had in time."""


AWAY = (
    DatabaseUnavailable, psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.IdleInTransactionSessionTimeout,
)  # fmt: skip
"""What is raised where the database is away: no answer says whether a commit under way arrived."""


def runtime_conninfo(url: str, role: str, root: crypto.RootKey) -> str:
    """The address of one run-time role on the server of `url`."""
    parts = conninfo_to_dict(url)
    parts.update(user=role, password=root.password(role), connect_timeout=CONNECT_TIMEOUT_S, application_name=role)
    return make_conninfo("", **parts)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is: `url` reaches PostgreSQL itself, `pool_url` a pooler in front of it, if any."""

    url: str
    pool_url: str | None = None
    prepare: bool = True


class Database:
    """Pools for the roles a process needs, and the only two doors to data: `tenant_tx` and `system_tx`."""

    def __init__(
        self,
        address: Address,
        root: crypto.RootKey,
        roles: tuple[str, ...],
        size: int,
        smaller: Mapping[str, int] | None = None,
    ) -> None:
        """`size`: connections of each role at most; `smaller`: of roles that need fewer."""
        self.clock = DatabaseClock()
        self.address = address
        self._root = root
        self._signer = ContextSigner(root, self.clock)
        fewer = smaller or {}
        self._pools = {role: self._pool(role, min(size, fewer.get(role, size))) for role in roles}
        self._lending = {role: Lending(pool) for role, pool in self._pools.items()}

    def _pool(self, role: str, size: int) -> AsyncConnectionPool[Pooled]:
        async def configure(conn: Pooled) -> None:
            conn.prepare_threshold = 2 if self.address.prepare else None

        async def check(conn: Pooled) -> None:
            """Hand out no connection that died while it was idle; no round trip for those that did not."""
            if not stirred(conn):
                return
            try:
                await AsyncConnectionPool.check_connection(conn)
            except psycopg.OperationalError:
                await pool.check()  # what ended this one has most likely ended the others
                raise

        pool: AsyncConnectionPool[Pooled] = AsyncConnectionPool(
            runtime_conninfo(self.address.pool_url or self.address.url, role, self._root),
            connection_class=Pooled,
            min_size=1,
            max_size=size,
            open=False,
            timeout=POOL_WAIT_S,
            kwargs={"autocommit": True},
            configure=configure,
            name=role,
            check=check,
            reconnect_timeout=30,
        )
        return pool

    async def open(self) -> None:
        """Connect every pool and read the database's clock. Raises DatabaseUnavailable."""
        try:
            for pool in self._pools.values():
                await pool.open()
                await pool.wait(timeout=15)
            await self.sync_clock()
        except (PoolTimeout, psycopg.OperationalError) as error:
            await self.close()  # pools left open go on connecting, and the process never ends
            raise DatabaseUnavailable(str(error)) from error

    async def close(self) -> None:
        for lending in self._lending.values():
            await lending.close()

    async def sync_clock(self) -> None:
        """Read the database's clock again: call it every minute or so, so that a drifting machine stays right."""
        role = next(iter(self._pools))
        async with self._connection(role) as conn:
            row = await (await conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8")).fetchone()
        assert row is not None
        self.clock.sync(row[0])

    async def keep_time(self) -> None:
        """Read the clock every CLOCK_EVERY_S until cancelled; a reading that fails leaves the last one in force."""
        while True:
            await asyncio.sleep(CLOCK_EVERY_S)
            with contextlib.suppress(Exception):
                await self.sync_clock()

    async def direct(self, role: str) -> AsyncConnection[Any]:
        """A connection of one's own past any pooler: for LISTEN and for heartbeats."""
        return await AsyncConnection.connect(runtime_conninfo(self.address.url, role, self._root), autocommit=True)

    @asynccontextmanager
    async def statement(self, role: str) -> AsyncIterator[AsyncConnection[Any]]:
        """A pooled connection in autocommit, for statements without data: NOTIFY, SELECT 1."""
        async with self._connection(role) as conn:
            yield conn

    @asynccontextmanager
    async def _connection(self, role: str) -> AsyncIterator[AsyncConnection[Any]]:
        lending = self._lending[role]
        conn = await _taken(lending)
        try:
            yield conn
        except psycopg.Error as error:
            _raise_when_lost(conn, error)
            raise
        finally:
            await lending.give_back(conn)

    @asynccontextmanager
    async def tenant_tx(self, org_id: UUID, role: str = "limner_api") -> AsyncIterator[Tx]:
        """A transaction that sees one organization. Commits at the end of the block, rolls back on an error."""
        async with self._connection(role) as conn:
            # bound, never spelt out: pg_stat_activity shows a role the text of its other sessions' statements
            async with conn.pipeline():
                await conn.execute("BEGIN", prepare=False)
                await conn.execute("SELECT set_config('limner.ctx', %s, true)", [self._signer.sign(org_id)])
            async with _ending(conn):
                yield Tx(conn, org_id)

    def tenant_single(self, org_id: UUID, role: str = "limner_api") -> "_SingleStatement":
        """One statement that carries its own context: one round trip is the whole transaction.

        `async with db.tenant_single(org) as tx:` yields a Single. Written without nested context managers: this is
        the path of every submit.
        """
        return _SingleStatement(self._lending[role], org_id, self._signer.sign(org_id))

    def shared_single(self, org_ids: Iterable[UUID], role: str = "limner_api") -> "_SingleStatement":
        """One statement for several organizations, which it carries in one context: for functions that enter them all."""
        return _SingleStatement(self._lending[role], None, self._signer.sign(*org_ids))

    @asynccontextmanager
    async def system_tx(self, role: str, reason: str) -> AsyncIterator[Tx]:
        """Installation-wide work without a tenant, for the named role; `reason` says why, for the reader."""
        assert reason, "say why tenant scope is gone around"
        async with self._connection(role) as conn:
            await conn.execute("BEGIN", prepare=False)
            async with _ending(conn):
                yield Tx(conn, None)


class _SingleStatement:
    """Takes a connection, gives it back; there is no transaction to end."""

    __slots__ = ("_conn", "_ctx", "_lending", "_org_id")

    def __init__(self, lending: Lending, org_id: UUID | None, ctx: str | None) -> None:
        self._lending = lending
        self._org_id = org_id
        self._ctx = ctx

    async def __aenter__(self) -> Single:
        self._conn = await _taken(self._lending)
        return Single(self._conn, self._org_id, self._ctx)

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if error is not None:
                _raise_when_lost(self._conn, error)
        finally:
            await self._lending.give_back(self._conn)


async def _taken(lending: Lending) -> Pooled:
    try:
        return await lending.take()
    except PoolTimeout as error:
        raise DatabaseUnavailable("every connection is busy or the database is away") from error


def _raise_when_lost(conn: AsyncConnection[Any], error: BaseException) -> None:
    """A session that ends in the middle of an answer shows as whatever psycopg makes of it: of a COMMIT, an InternalError."""
    if conn.broken and isinstance(error, psycopg.Error) and not isinstance(error, AWAY):
        raise DatabaseUnavailable("the connection was lost") from error


@asynccontextmanager
async def _ending(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        if not conn.closed:
            await conn.rollback()
        raise
    await conn.commit()
