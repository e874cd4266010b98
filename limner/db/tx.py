"""What verbs receive: a transaction they may use and never end.

`Tx` carries its organization, so that a verb cannot be handed another's. `Single` is a transaction of exactly
one statement, whose signed context travels as the statement's first parameter.

Verbs speak in data: one SELECT, INSERT, UPDATE or DELETE a call. Whatever else a text might be made to say (PREPARE,
SET, DO, a second statement) could outlive its transaction on the pooled connection and wait there for the next tenant.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row

Params = Mapping[str, Any] | Sequence[Any]
Row = dict[str, Any]
_DATA = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH)\b")


class NotData(ValueError):
    """A statement that is none of SELECT, INSERT, UPDATE, DELETE."""


def _data(query: str) -> str:
    if not _DATA.match(query):
        raise NotData(f"a verb may not run {query.split(maxsplit=1)[0] if query.strip() else 'nothing'}")
    return query


class Tx:
    """A transaction in progress. `org_id` is None in system transactions; `ctx` is None: the context is set."""

    ctx: str | None = None

    def __init__(self, conn: AsyncConnection[Any], org_id: UUID | None) -> None:
        self._conn = conn
        self._org_id = org_id

    @property
    def org_id(self) -> UUID:
        """The organization of this transaction. Raises RuntimeError in a system transaction."""
        if self._org_id is None:
            raise RuntimeError("a system transaction has no organization")
        return self._org_id

    async def execute(self, query: str, params: Params | None = None) -> int:
        """Run a statement; the number of rows it touched."""
        # binary, as below: the extended protocol takes one statement and no more
        return (await self._conn.execute(_data(query), params, binary=True)).rowcount

    async def find(self, query: str, params: Params | None = None) -> Row | None:
        """The first row, or None."""
        return await (await self._cursor().execute(_data(query), params)).fetchone()

    async def get(self, query: str, params: Params | None = None) -> Row:
        """The first row; LookupError when there is none."""
        row = await self.find(query, params)
        if row is None:
            raise LookupError("no row")
        return row

    async def all(self, query: str, params: Params | None = None) -> list[Row]:
        """Every row. The statement itself must be bounded."""
        return await (await self._cursor().execute(_data(query), params)).fetchall()

    def _cursor(self) -> AsyncCursor[Row]:
        return rows_of(self._conn)


def rows_of(conn: AsyncConnection[Any]) -> AsyncCursor[Row]:
    """A cursor as verbs want it: rows by name, in PostgreSQL's binary format."""
    return conn.cursor(row_factory=dict_row, binary=True)


class Pooled(AsyncConnection[Any]):
    """A connection of a pool, with a cursor for those who run one statement alone: a new one learns every parameter's type anew."""

    lent_at = 0.0
    """When its pool gave it out, by time.monotonic."""
    _lone: AsyncCursor[Row] | None = None

    def lone_cursor(self) -> AsyncCursor[Row]:
        """Its rows are to be fetched before the connection goes back."""
        if self._lone is None:
            self._lone = rows_of(self)
        return self._lone


class Single(Tx):
    """One statement, one transaction, one round trip."""

    def __init__(self, conn: Pooled, org_id: UUID | None, ctx: str | None) -> None:
        super().__init__(conn, org_id)
        self._pooled = conn
        self.ctx = ctx
        self._used = False

    async def execute(self, query: str, params: Params | None = None) -> int:
        self._use()
        return await super().execute(query, params)

    def _cursor(self) -> AsyncCursor[Row]:
        self._use()
        return self._pooled.lone_cursor()

    def _use(self) -> None:
        if self._used:
            raise RuntimeError("a single-statement transaction was used twice")
        self._used = True
