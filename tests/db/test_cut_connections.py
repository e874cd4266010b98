"""A connection that ends in the middle of an answer is the database being away, whichever message was the last one."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from limner.db.pools import AWAY, Address, Database
from tests.conftest import MakeTenant, Server, Tenant

ROLE = "limner_worker"
MOST_MESSAGES = 60
Statements = Callable[[Database, Tenant, int], Awaitable[None]]


def _told(kind: bytes, **facts: str) -> bytes:
    """An ErrorResponse or a NoticeResponse, as PostgreSQL's protocol writes them."""
    body = b"".join(name.encode() + text.encode() + b"\0" for name, text in facts.items()) + b"\0"
    return kind + struct.pack("!I", len(body) + 4) + body


SAID_LAST: dict[str, bytes] = {
    "terminated": _told(b"E", S="FATAL", V="FATAL", C="57P01", M="terminating connection"),
    "crash elsewhere": _told(b"N", S="WARNING", V="WARNING", C="57P02", M="terminating connection"),
    "nothing": b"",
}


class Cutter:
    """Stands between limner and PostgreSQL, and ends a connection after `left` more of the server's messages."""

    def __init__(self, path: str, said_last: bytes) -> None:
        self._path = path
        self._said_last = said_last
        self.left: int | None = None

    def _over(self) -> bool:
        """Said once: the connection that takes this one's place is not cut."""
        over = self.left == 0
        if over:
            self.left = None
        return over

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, towards = await asyncio.open_unix_connection(self._path)
        asking = asyncio.create_task(_pass_on(reader, towards))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not self._over():
                head = await upstream.readexactly(5)
                writer.write(head + await upstream.readexactly(struct.unpack("!I", head[1:])[0] - 4))
                if self.left is not None:
                    self.left -= 1
            writer.write(self._said_last)
            await writer.drain()
        asking.cancel()
        for end in (writer, towards):
            end.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


@asynccontextmanager
async def _cut(server: Server, said_last: bytes) -> AsyncIterator[tuple[Cutter, Database]]:
    """A database of one connection, with a cutter before it."""
    parts = conninfo_to_dict(server.url)
    cutter = Cutter(f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}", said_last)
    listening = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    parts.update(host="127.0.0.1", port=listening.sockets[0].getsockname()[1], sslmode="disable")
    database = Database(Address(make_conninfo("", **parts)), server.root, (ROLE,), size=1)
    await database.open()
    yield cutter, database
    await database.close()
    listening.close()


async def _one(database: Database, tenant: Tenant, mark: int) -> None:
    async with database.tenant_single(tenant.org_id, ROLE) as tx:
        await tx.find(f"SELECT {mark} AS n, %s::text AS a", ["x"])


async def _several(database: Database, tenant: Tenant, mark: int) -> None:
    async with database.tenant_tx(tenant.org_id, ROLE) as tx:
        await tx.find(f"SELECT {mark} AS n FROM limner.job WHERE org_id = %s", [tenant.org_id])
        await tx.execute(f"SELECT {mark} AS n FROM limner.provider_call WHERE org_id = %s", [tenant.org_id])


@pytest.mark.parametrize("said_last", SAID_LAST)
@pytest.mark.parametrize("statements", [_one, _several])
@pytest.mark.parametrize("before", [1, 2, 3])
async def test_mj5_a_connection_cut_anywhere_is_the_database_being_away(
    server: Server, make_tenant: MakeTenant, said_last: str, statements: Statements, before: int
) -> None:  # fmt: skip
    """`before`: how often the statements have run on the connection, since they are prepared after some times."""
    tenant = await make_tenant()
    ends: list[str] = []
    async with _cut(server, SAID_LAST[said_last]) as (cutter, database):
        for messages in range(1, MOST_MESSAGES):
            for _ in range(before):
                await statements(database, tenant, messages)
            cutter.left = messages
            try:
                await statements(database, tenant, messages)
            except AWAY:
                ends.append("away")
            else:
                if cutter.left is not None:  # it was over before
                    break
    assert ends.count("away") >= 3
