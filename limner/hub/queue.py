"""How the workers are shared: weights, caps and pauses of organizations and apps, and what waits in whose line.

A row of `queue_policy` is an organization's (its app is the organization itself) or an app's; the platform's own pauses everybody.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from limner.db.context import PLATFORM
from limner.db.tx import Tx
from limner.tenancy import audit

MAX_LINES = 1000
NO_CAP: Literal["none"] = "none"
Cap = int | Literal["none"]

LINES = """
SELECT o.slug, coalesce(q.org_id, p.org_id) AS org_id, coalesce(q.app_id, p.app_id) AS app_id, coalesce(q.ready, 0) AS ready,
       coalesce(q.running, 0) AS running, coalesce(q.deferred, 0) AS deferred, coalesce(q.overdue, 0) AS overdue,
       coalesce(q.oldest_s, 0)::float8 AS oldest_s, coalesce(p.weight, 1) AS weight, p.max_running, p.paused_at
  FROM (SELECT j.org_id, j.app_id,
               count(*) FILTER (WHERE j.phase IN ('ready', 'capped')
                                   OR (j.phase = 'leased' AND j.claimable_at < clock_timestamp())) AS ready,
               count(*) FILTER (WHERE j.phase = 'leased' AND j.claimable_at >= clock_timestamp()) AS running,
               count(*) FILTER (WHERE j.phase = 'deferred') AS deferred,
               count(*) FILTER (WHERE j.deadline_at < clock_timestamp()) AS overdue,
               extract(epoch FROM clock_timestamp() - min(j.created_at) FILTER (WHERE j.phase IN ('ready', 'capped'))) AS oldest_s
          FROM limner.job_queue j GROUP BY 1, 2) q
  FULL JOIN (SELECT * FROM limner.queue_policy x WHERE x.weight <> 1 OR x.max_running IS NOT NULL OR x.paused_at IS NOT NULL) p
    ON p.org_id = q.org_id AND p.app_id = q.app_id
  LEFT JOIN limner.organization o ON o.org_id = coalesce(q.org_id, p.org_id)
 ORDER BY ready DESC, o.slug, app_id LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Line:
    """What waits for one app, and its share; of an organization (`app_id` is `org_id`) or the platform the share alone."""

    slug: str | None
    org_id: UUID
    app_id: UUID
    ready: int
    running: int
    deferred: int
    overdue: int
    oldest_s: float
    weight: int
    max_running: int | None
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class Served:
    """A provider with a cap: how many jobs are at it. `slug` is None for the platform's own."""

    slug: str | None
    name: str
    is_enabled: bool
    max_running: int
    running: int

    @property
    def is_full(self) -> bool:
        return self.running >= self.max_running


async def share(
    tx: Tx, app_id: UUID | None, *, actor: str, weight: int | None = None, max_running: Cap | None = None
) -> None:
    """Change what is given of the organization's share, or of one of its apps'; a cap of "none" is lifted."""
    cap = None if max_running == NO_CAP else max_running
    await tx.execute(
        "INSERT INTO limner.queue_policy AS p (org_id, app_id, weight, max_running)"
        " VALUES (%(org)s, %(app)s, coalesce(%(weight)s, 1), %(cap)s) ON CONFLICT (org_id, app_id) DO UPDATE SET"
        " weight = coalesce(%(weight)s, p.weight),"
        " max_running = CASE WHEN %(capped)s THEN excluded.max_running ELSE p.max_running END",
        {"org": tx.org_id, "app": app_id or tx.org_id, "weight": weight, "cap": cap, "capped": max_running is not None},
    )
    given: dict[str, Any] = {"weight": weight, "max_running": max_running}
    kind, entity = _entity(tx, app_id)
    changed = {name: value for name, value in given.items() if value is not None}
    await audit.record(tx, "queue.shared", kind, entity, actor, **changed)


async def pause(tx: Tx, app_id: UUID | None, *, actor: str, reason: str) -> None:
    """Claim nothing more of the organization (or one app); in the platform's own context: of anybody. Submits go on."""
    await tx.execute(
        "INSERT INTO limner.queue_policy AS p (org_id, app_id, paused_at) VALUES (%s, %s, clock_timestamp())"
        " ON CONFLICT (org_id, app_id) DO UPDATE SET paused_at = coalesce(p.paused_at, excluded.paused_at)",
        [tx.org_id, app_id or tx.org_id],
    )
    await audit.record(tx, "queue.paused", *_entity(tx, app_id), actor, reason=reason)


async def resume(tx: Tx, app_id: UUID | None, *, actor: str) -> bool:
    """Whether it was paused."""
    count = await tx.execute(
        "UPDATE limner.queue_policy SET paused_at = NULL WHERE org_id = %s AND app_id = %s AND paused_at IS NOT NULL",
        [tx.org_id, app_id or tx.org_id],
    )
    await audit.record(tx, "queue.resumed", *_entity(tx, app_id), actor, was_paused=count > 0)
    return count > 0


async def list_lines(tx: Tx) -> list[Line]:
    """Everybody who has something in line or a share of its own: for an operator's system transaction. The longest first."""
    return [Line(**row) for row in await tx.all(LINES, {"limit": MAX_LINES})]


async def list_capped(tx: Tx) -> list[Served]:
    """Every provider with a cap, by name: for an operator's system transaction."""
    rows = await tx.all(
        "SELECT o.slug, f.name, f.is_enabled, f.max_running, f.running FROM limner.provider_facts() f"
        " LEFT JOIN limner.organization o ON o.org_id = f.org_id ORDER BY f.name, o.slug"
    )
    return [Served(**row) for row in rows]


async def count_running(tx: Tx) -> int:
    """Jobs under a live lease, of everybody: for an operator's system transaction."""
    return int((await tx.get("SELECT running FROM limner.queue_facts()"))["running"])


async def get_share(tx: Tx, app_id: UUID | None) -> tuple[int, int | None]:
    """Weight and cap of the organization, or of one of its apps."""
    row = await tx.find(
        "SELECT weight, max_running FROM limner.queue_policy WHERE org_id = %s AND app_id = %s",
        [tx.org_id, app_id or tx.org_id],
    )
    return (row["weight"], row["max_running"]) if row else (1, None)


def _entity(tx: Tx, app_id: UUID | None) -> tuple[str, UUID]:
    if app_id is not None:
        return "app", app_id
    return ("platform" if tx.org_id == PLATFORM else "organization"), tx.org_id
