"""The hub's duties: check the books, count the queue, sweep objects that no job refers to."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from limner.db.pools import Database
from limner.hub import outputs
from limner.ledger import invariants
from limner.media.store import ObjectStore
from limner.telemetry import logs, metrics

CHECK_EVERY_S = 60.0
SWEEP_EVERY_S = 300.0
SWEEP_BATCH = 1000
LATE_COMMITS = timedelta(seconds=30)  # rows carry the time of their statement, not of their commit
log = logs.get("chores")

LEFTOVERS = """
SELECT j.id, j.outputs FROM limner.job j
 WHERE j.org_id = %(org)s AND j.finished_at >= %(since)s - make_interval(secs => %(after)s)
   AND j.finished_at < clock_timestamp() - make_interval(secs => %(after)s)
   AND (j.finished_fence > 1 OR j.state IN ('failed', 'cancelled')) ORDER BY j.finished_at LIMIT %(limit)s
"""


class HubChores:
    """What a worker does besides jobs. `sweep_after_s`: how long a loser's objects are kept."""

    def __init__(self, db: Database, store: ObjectStore, sweep_after_s: int) -> None:
        self._db = db
        self._store = store
        self._sweep_after_s = sweep_after_s

    async def check_books(self, since: datetime) -> dict[str, Any]:
        """The invariants over what changed since the last check; a violation is an error in the log and a metric."""
        async with self._db.system_tx("limner_audit", "the books are checked over all organizations") as tx:
            violations, checked, example = await invariants.check_changes(tx, since - LATE_COMMITS)
            held = await tx.get("SELECT count(*) AS holds, (SELECT coalesce(sum(w.held_mc), 0)::bigint FROM limner.wallet w)"
                                " AS held_mc FROM limner.job_queue")  # fmt: skip
        if violations:
            log.error("invariants.violated", violations=violations, example=example)
        metrics.VIOLATIONS.set(violations)
        metrics.OPEN_HOLDS.set(held["holds"])
        metrics.HELD_CREDITS.set(held["held_mc"] / 1000)
        return {"violations": violations, "checked": checked, "open_holds": held["holds"], "held_mc": held["held_mc"]}

    async def sweep_losers(self, since: datetime) -> dict[str, Any]:
        """Delete objects that runs left and no job refers to, a day after the job's end, organization by organization."""
        async with self._db.system_tx("limner_operator", "the duty goes through all organizations") as tx:
            orgs = [row["org_id"] for row in await tx.all("SELECT org_id FROM limner.organization ORDER BY org_id")]
        deleted = 0
        for org_id in orgs:
            deleted += await self._sweep(org_id, since)
        return {"deleted": deleted}

    async def _sweep(self, org_id: UUID, since: datetime) -> int:
        facts = {"org": org_id, "since": since, "after": self._sweep_after_s, "limit": SWEEP_BATCH}
        async with self._db.tenant_tx(org_id, "limner_worker") as tx:
            jobs = await tx.all(LEFTOVERS, facts)
        deleted = 0
        for job in jobs:
            wanted = {item.get("key") for item in job["outputs"] or []}
            found = await self._store.list_keys(outputs.prefix(org_id, job["id"]))
            losers = [key for key in found if key not in wanted]
            await self._store.delete(losers)
            deleted += len(losers)
        return deleted
