"""The organization's four books, day by day (UTC): closed sums that never change."""

from dataclasses import dataclass
from datetime import date

import psycopg

from limner.db.tx import Tx
from limner.ledger import refusals


@dataclass(frozen=True, slots=True)
class Sum:
    """What one kind of transfer took out of a book (`debit_mc`) and brought into it (`credit_mc`) on a day."""

    day: date
    book: str
    kind: str
    debit_mc: int
    credit_mc: int
    transfers: int


async def close(tx: Tx, day: date) -> int:
    """Close every day up to `day` that is open, in order; how many sums that made. Raises refusals.BadAmount: not over yet."""
    try:
        row = await tx.get("SELECT limner.close_books(%s, %s) AS made", [tx.ctx, day])
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return int(row["made"])


async def list_day(tx: Tx, day: date) -> list[Sum]:
    """A closed day's sums by book and kind; none when it is open or nothing moved."""
    rows = await tx.all(
        "SELECT d.day, d.book, d.kind, d.debit_mc::bigint, d.credit_mc::bigint, d.transfers FROM limner.book_day d"
        " WHERE d.org_id = %s AND d.day = %s ORDER BY d.book, d.kind LIMIT 100",
        [tx.org_id, day],
    )
    return [Sum(**row) for row in rows]


async def last_complete_day(tx: Tx) -> date:
    """The last day that can be closed, by the database's clock."""
    row = await tx.get(
        "SELECT ((clock_timestamp() - interval '10 minutes') AT TIME ZONE 'UTC')::date - 1 AS day"  # as close_books demands
    )
    found: date = row["day"]
    return found
