"""All there is to see of one organization's books, in one round trip and planned once: both are most of what looking costs."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
from psycopg.rows import class_row

BODY = "SELECT prosrc FROM pg_proc WHERE oid = 'limner.check_invariants(uuid)'::regprocedure"
EVERYBODY = "p_org IS NULL OR "
PURSES = """
SELECT u.external_id AS who, limner.spendable_mc(w) AS available_mc, w.available_mc - limner.spendable_mc(w) AS unswept_mc, w.held_mc,
       w.owed_mc
  FROM limner.wallet w LEFT JOIN limner.end_user u ON u.org_id = w.org_id AND u.id = w.id WHERE w.org_id = %s
"""
LOTS = """
SELECT u.external_id, l.expires_at, l.remaining_mc
  FROM limner.lot l LEFT JOIN limner.end_user u ON u.org_id = l.org_id AND u.id = l.wallet_id
 WHERE l.org_id = %s AND l.remaining_mc > 0 AND l.expires_at > clock_timestamp()
"""
SUMS = """
SELECT coalesce(sum(CASE WHEN kind = 'post' THEN amount_mc WHEN kind = 'refund' THEN -amount_mc END), 0)::bigint,
       coalesce(sum(CASE WHEN debit_book = 'issuance' THEN amount_mc WHEN credit_book = 'issuance' THEN -amount_mc END), 0)::bigint,
       coalesce(sum(amount_mc) FILTER (WHERE credit_book = 'breakage'), 0)::bigint
  FROM limner.transfer WHERE org_id = %s
"""


@dataclass(frozen=True, slots=True)
class Purse:
    """A wallet; `who` is None for the organization's own. `unswept_mc` has ended and is still in its number."""

    who: str | None
    available_mc: int
    unswept_mc: int
    held_mc: int
    owed_mc: int


@dataclass(frozen=True, slots=True)
class Found:
    """`broken`: as acts.books. `lots`: whose, until when, how much is left."""

    broken: dict[str, str | None]
    purses: list[Purse]
    lots: list[tuple[str | None, datetime, int]]
    revenue_mc: int
    issuance_mc: int
    breakage_mc: int


class Books:
    """Looks as the superuser; limner.check_invariants without its branch for the whole installation."""

    def __init__(self, conninfo: str) -> None:
        self._conn = psycopg.connect(conninfo, autocommit=True)
        for setting in ("plan_cache_mode = force_generic_plan", "enable_seqscan = off", "search_path = pg_catalog"):
            self._conn.execute(f"SET {setting}".encode())
        row = self._conn.execute(BODY).fetchone()
        assert row is not None
        assert EVERYBODY in row[0]
        self._invariants = row[0].replace("%", "%%").replace(EVERYBODY, "").replace("p_org", "%(org)s")

    def look(self, org_id: UUID) -> Found:
        with self._conn.pipeline():
            invariants = self._conn.execute(self._invariants, {"org": org_id}, prepare=True)
            purses = self._conn.cursor(row_factory=class_row(Purse)).execute(PURSES, [org_id], prepare=True)
            lots = self._conn.execute(LOTS, [org_id], prepare=True)
            sums = self._conn.execute(SUMS, [org_id], prepare=True)
        rows = invariants.fetchall()
        assert len(rows) == 14
        broken = {name: example for name, violations, example in rows if violations}
        [booked] = sums.fetchall()
        return Found(broken, purses.fetchall(), lots.fetchall(), *booked)

    def close(self) -> None:
        self._conn.close()
