"""What was used, grouped as asked: from the sums by day, and the records that are not in them yet (16_usage.sql)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from limner.db.tx import Row, Tx

COLUMNS: dict[str, tuple[str, ...]] = {
    "day": ("day",),
    "app": ("app_id",),
    "user": ("payer_id",),
    "model": ("model",),
    "provider": ("provider",),
    "kind": ("kind", "unit"),
}
"""What usage can be grouped by."""
TYPES = {"day": "date", "app_id": "uuid", "payer_id": "uuid"}
READ: dict[str, Callable[[str], object]] = {"day": date.fromisoformat, "app_id": UUID, "payer_id": UUID}
FAILED_ATTEMPT = "failed_attempt"
"""The kind of attempts that delivered nothing and were billed all the same."""
MAX_INTEGER = 2**63 - 1
MAX_TEXT = 200
AT_ONCE = 5000
"""Rows a statement, of those who read on and on."""

QUERY = """
WITH used AS (
  SELECT {columns}, u.kind AS of_kind, u.jobs, u.quantity, u.price_mc, NULL::bigint AS refunded_mc, u.cost_micro_usd FROM limner.{sums} u
   WHERE u.org_id = %(org)s AND {which}
  UNION ALL
  SELECT {columns}, u.kind, u.jobs, u.quantity, u.price_mc, NULL, u.cost_micro_usd FROM limner.usage_tail(%(org)s) u WHERE {which}
  UNION ALL
  SELECT {columns}, u.kind, NULL, NULL, NULL, u.refunded_mc, NULL FROM limner.usage_refunds(%(org)s, %(first)s, %(last)s) u WHERE {which}),
page AS (
  SELECT {columns}, sum(u.jobs) AS jobs, {quantity} AS quantity, sum(u.price_mc) AS price_mc, sum(u.refunded_mc) AS refunded_mc,
         {cost} AS cost_micro_usd
    FROM used u WHERE (%(costs)s OR u.of_kind <> '{failed}') AND {after}
   GROUP BY {columns} ORDER BY {columns} LIMIT %(limit)s)
SELECT u.*{named} FROM page u {joins} ORDER BY {columns}
"""


@dataclass(frozen=True, slots=True)
class Query:
    """Usage of the days (UTC) from `first` to `last`, both included, grouped by these of COLUMNS in their order.

    `app_id`: of one app; `payer_id`: of one end user (or the organization itself). `costs`: with what providers cost, and the
    attempts that were billed and delivered nothing.
    """

    first: date
    last: date
    group_by: tuple[str, ...]
    app_id: UUID | None = None
    payer_id: UUID | None = None
    costs: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for name in self.group_by for column in COLUMNS[name])


@dataclass(frozen=True, slots=True)
class Line:
    """One group. `keys`: its columns' values; `app` its slug and `user_id` its external id (None: the organization), where grouped by.

    `quantity` is of `unit`, and told only where grouped by kind, `cost_micro_usd` only where the query is with costs.
    """

    keys: tuple[Any, ...]
    app: str | None
    user_id: str | None
    jobs: int
    quantity: int
    price_mc: int
    refunded_mc: int
    cost_micro_usd: int


async def list_lines(tx: Tx, query: Query, limit: int, after: Sequence[str] | None = None) -> list[Line]:
    """The groups in their order; `after`: the `position` of the line to go on behind."""
    text, params = _statement(query, after)
    rows = await tx.all(text, params | {"org": tx.org_id, "limit": limit})
    return [_line(query, row) for row in rows]


async def every_line(
    query: Query, read: Callable[[Query, Sequence[str] | None], Awaitable[list[Line]]]
) -> AsyncIterator[Line]:
    """All groups, by one `list_lines` of AT_ONCE after the other: `read` makes each in a transaction of its own."""
    after: Sequence[str] | None = None
    while True:
        lines = await read(query, after)
        for line in lines:
            yield line
        if len(lines) < AT_ONCE:
            return
        after = position(lines[-1])


def of_user(query: Query, user_id: UUID) -> Query:
    """The same of one end user alone."""
    return replace(query, payer_id=user_id)


def position(line: Line) -> list[str]:
    """Where a line stands."""
    return [str(key) for key in line.keys]


def is_position(query: Query, after: Any) -> bool:
    """Whether that may be a line's place in this query's list."""
    columns = query.columns
    if not isinstance(after, list) or len(after) != len(columns):
        return False
    for column, value in zip(columns, after, strict=True):
        if not isinstance(value, str) or len(value) > MAX_TEXT or "\0" in value:
            return False
        try:
            value.encode()
            READ.get(column, str)(value)
        except ValueError:
            return False
    return True


def _statement(query: Query, after: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    by_user = "user" in query.group_by or query.payer_id is not None
    params: dict[str, Any] = {"first": query.first, "last": query.last, "costs": query.costs}
    which = "u.day BETWEEN %(first)s AND %(last)s"
    if query.app_id is not None:
        which += " AND u.app_id = %(app)s"
        params["app"] = query.app_id
    if query.payer_id is not None:
        which += " AND u.payer_id = %(payer)s"
        params["payer"] = query.payer_id
    behind = "true"
    if after is not None:
        values = ", ".join(f"%(after{n})s::{TYPES.get(name, 'text')}" for n, name in enumerate(query.columns))
        behind = f"({', '.join(f'u.{name}' for name in query.columns)}) > ({values})"
        params |= {f"after{n}": value for n, value in enumerate(after)}
    named, joins = "", ""
    if "app" in query.group_by:
        named += ", a.slug AS app"
        joins += " LEFT JOIN limner.app a ON a.org_id = %(org)s AND a.id = u.app_id"
    if "user" in query.group_by:
        named += ", e.external_id AS user_id"
        joins += " LEFT JOIN limner.end_user e ON e.org_id = %(org)s AND e.id = u.payer_id"
    text = QUERY.format(
        columns=", ".join(f"u.{name}" for name in query.columns), sums="usage_user_day" if by_user else "usage_day",
        which=which, after=behind, quantity="sum(u.quantity)" if "kind" in query.group_by else "0",
        cost="sum(u.cost_micro_usd)" if query.costs else "0", failed=FAILED_ATTEMPT, named=named, joins=joins,
    )  # fmt: skip
    return text, params


def _line(query: Query, row: Row) -> Line:
    return Line(
        tuple(row[column] for column in query.columns), row.get("app"), row.get("user_id"), _integer(row["jobs"]),
        _integer(row["quantity"]), _integer(row["price_mc"]), _integer(row["refunded_mc"]), _integer(row["cost_micro_usd"]),
    )  # fmt: skip


def _integer(value: Decimal | int | None) -> int:
    """Sums have no bound, integers on the wire do: one that is reached is no count but a mistake somewhere."""
    return min(int(value or 0), MAX_INTEGER)
