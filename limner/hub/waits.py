"""How long a job is likely to take: who stands before it, how fast its app's jobs are done, and how long its model runs."""

import asyncio
import math
import time
from dataclasses import dataclass
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.tx import Tx

REMEMBERED_S = 10.0
STALE_S = 60.0
ENTRIES = 10_000
SAMPLE = 100
AHEAD_LIMIT = 10_000

# The app's last closed jobs are looked for among its newest ones and, behind a backlog, among those before its oldest open one.
# The time they took together is the union of their spans from entering the line to the end: hours in which the app ordered nothing
# are not slowness.
MEASURE = """
WITH waiting AS (
  SELECT q.job_id, q.phase, q.priority FROM limner.job_queue q
   WHERE q.org_id = %(org)s AND q.app_id = %(app)s AND q.phase <> 'deferred' LIMIT %(most)s),
line AS (
  SELECT count(*) FILTER (WHERE phase = 'leased' OR priority <= %(priority)s) AS ahead, min(job_id::text)::uuid AS oldest FROM waiting),
recent AS (
  (SELECT j.id, j.model, j.state, coalesce(j.run_at, j.created_at) AS begun, j.started_at, j.finished_at FROM limner.job j
    WHERE j.org_id = %(org)s AND j.app_id = %(app)s ORDER BY j.id DESC LIMIT %(sample)s)
  UNION
  (SELECT j.id, j.model, j.state, coalesce(j.run_at, j.created_at), j.started_at, j.finished_at FROM limner.job j
    WHERE j.org_id = %(org)s AND j.app_id = %(app)s AND j.id < (SELECT oldest FROM line) ORDER BY j.id DESC LIMIT %(sample)s)),
done AS (
  SELECT r.*, max(r.finished_at) OVER (ORDER BY r.begun, r.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS until
    FROM recent r WHERE r.finished_at IS NOT NULL AND r.started_at IS NOT NULL)
SELECT (SELECT ahead FROM line) AS ahead, count(*) AS done,
       coalesce(sum(extract(epoch FROM greatest(interval '0', d.finished_at - greatest(d.begun, d.until)))), 0)::float8 AS busy_s,
       (avg(extract(epoch FROM d.finished_at - d.started_at)) FILTER (WHERE d.model = %(model)s AND d.state = 'succeeded'))::float8 AS run_s
  FROM done d
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Jobs ahead in the line, jobs done in `busy_s` seconds of having something to do, and the model's mean run; None: never seen."""

    ahead: int
    done: int
    busy_s: float
    run_s: float | None

    def estimate_s(self, expected_s: float) -> int:
        """`expected_s`, the catalog's figure, holds only for what has not been measured."""
        run_s = expected_s if self.run_s is None else self.run_s
        each_s = self.busy_s / self.done if self.done else run_s
        return max(1, math.ceil(self.ahead * each_s + run_s))


async def measure(tx: Tx, app_id: UUID, model: str, priority: int) -> Measured:
    """From the app's queue rows and its last closed jobs."""
    row = await tx.get(MEASURE, {"org": tx.org_id, "app": app_id, "model": model, "priority": priority, "sample": SAMPLE,
                                 "most": AHEAD_LIMIT})  # fmt: skip
    return Measured(**row)


@dataclass(frozen=True, slots=True)
class Order:
    """What an estimate is for: estimates of one order are the same for ten seconds."""

    org_id: UUID
    app_id: UUID
    model: str
    priority: int


class WaitEstimates:
    """Remembers estimates; a known one is renewed behind the request's back, the first one is waited for."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[Order, tuple[float, int]] = {}
        self._measuring: dict[Order, asyncio.Task[int]] = {}

    async def get(self, order: Order, expected_s: float) -> int:
        """Whole seconds, at least 1."""
        known = self._known.get(order)
        age_s = time.monotonic() - known[0] if known else math.inf
        if known is not None and age_s < REMEMBERED_S:
            return known[1]
        task = self._measuring.get(order)
        if task is None:
            task = self._measuring[order] = asyncio.create_task(self._measure(order, expected_s))
            task.add_done_callback(lambda _: self._measuring.pop(order, None))
        if known is not None and age_s < STALE_S:
            return known[1]
        return await asyncio.shield(task)

    async def _measure(self, order: Order, expected_s: float) -> int:
        try:
            async with self._db.tenant_tx(order.org_id) as tx:
                estimate = (await measure(tx, order.app_id, order.model, order.priority)).estimate_s(expected_s)
        except (DatabaseUnavailable, psycopg.Error):
            known = self._known.get(order)
            return known[1] if known else math.ceil(expected_s)
        if len(self._known) >= ENTRIES:
            self._known.clear()
        self._known[order] = (time.monotonic(), estimate)
        return estimate
