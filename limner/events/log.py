"""The log: what happened, in the order `limner.events.relay` gives it. Readers ask for what is after a position, and miss nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from limner.db.tx import Tx

SCANNED = 1000
"""Positions looked at for one page: an app's page may be short although there is more."""
OF_SUBJECT = """
SELECT e.id, e.type, e.subject_id, e.payload, e.created_at, NULL::bigint AS seq FROM limner.event e
 WHERE e.org_id = %s AND e.subject_id = %s ORDER BY e.created_at, e.id LIMIT %s
"""
OF_APP = """
SELECT o.seq, o.app_id, e.id, e.type, e.subject_id, e.payload, e.created_at
  FROM (SELECT * FROM limner.event_order x WHERE x.org_id = %(org)s AND x.seq > %(after)s ORDER BY x.seq LIMIT %(scanned)s) o
  LEFT JOIN limner.event e ON e.org_id = %(org)s AND e.id = o.event_id AND o.app_id = %(app)s ORDER BY o.seq
"""
NEWS = """
SELECT o.seq, e.id, e.type, e.subject_id, e.payload, e.created_at
  FROM unnest(%(subjects)s::uuid[], %(after)s::bigint[]) s (id, seq)
  JOIN limner.event_order o ON o.org_id = %(org)s AND o.subject_id = s.id AND o.seq > s.seq
  JOIN limner.event e ON e.org_id = %(org)s AND e.id = o.event_id ORDER BY o.seq LIMIT 10000
"""


@dataclass(frozen=True, slots=True)
class Event:
    """`subject_id`: the job, document or other thing it is about. `seq`: its place in the organization's log, once it has one."""

    id: UUID
    type: str
    subject_id: UUID
    payload: dict[str, Any]
    created_at: datetime
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """`after`: where the next page begins; `more`: there was something behind it already."""

    events: list[Event]
    after: int
    more: bool


async def list_of_subject(tx: Tx, subject_id: UUID, limit: int = 1000) -> list[Event]:
    """Oldest first, placed or not."""
    return [Event(**row) for row in await tx.all(OF_SUBJECT, [tx.org_id, subject_id, limit])]


async def list_of_app(tx: Tx, app_id: UUID, *, after: int, limit: int) -> Page:
    """An app's events behind the position `after`, in order."""
    rows = await tx.all(OF_APP, {"org": tx.org_id, "app": app_id, "after": after, "scanned": SCANNED})
    mine = [row for row in rows if row.pop("app_id") == app_id and row["id"] is not None]
    page = [Event(**row) for row in mine[:limit]]
    if len(mine) > limit:
        return Page(page, mine[limit - 1]["seq"], more=True)
    return Page(page, rows[-1]["seq"] if rows else after, more=len(rows) == SCANNED)


async def list_news(tx: Tx, after: Mapping[UUID, int]) -> list[Event]:
    """Of each subject what is behind its position, in order; at most 10,000."""
    rows = await tx.all(NEWS, {"org": tx.org_id, "subjects": list(after), "after": list(after.values())})
    return [Event(**row) for row in rows]
