"""The hub's duties: check the books, count the queue, sweep objects that no job refers to."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from limner.db.pools import Database
from limner.db.tx import Row
from limner.hub import outputs
from limner.ledger import invariants
from limner.media.store import ObjectStore, StoreUnavailable
from limner.tasks.chores import Done, organizations
from limner.telemetry import logs, metrics

CHECK_EVERY_S = 60.0
WHOLE_BOOK_EVERY_S = 86_400.0
SWEEP_EVERY_S = 300.0
SWEEP_BATCH = 500
LATE_COMMITS = timedelta(seconds=30)  # rows carry the time of their statement, not of their commit
log = logs.get("chores")

LEFTOVERS = """
SELECT j.id, j.outputs FROM limner.leftover l JOIN limner.job j ON j.org_id = l.org_id AND j.id = l.job_id
 WHERE l.org_id = %(org)s AND l.finished_at < clock_timestamp() - make_interval(secs => %(after)s)
 ORDER BY l.finished_at, l.job_id LIMIT %(limit)s
"""
SWEPT = "DELETE FROM limner.leftover l WHERE l.org_id = %s AND l.job_id = ANY (%s)"


class HubChores:
    """What a worker does besides jobs. `sweep_after_s`: how long a loser's objects are kept."""

    def __init__(self, db: Database, store: ObjectStore, sweep_after_s: int) -> None:
        self._db = db
        self._store = store
        self._sweep_after_s = sweep_after_s

    async def check_books(self, since: datetime) -> Done:
        """The invariants over what changed since the last clean check; a violation is an error in the log and a metric.

        What is broken stays in sight: the same span is checked again until it is repaired.
        """
        async with self._db.system_tx("limner_audit", "the books are checked over all organizations") as tx:
            violations, checked, example = await invariants.check_changes(tx, since - LATE_COMMITS)
            held = await tx.get("SELECT count(*) AS holds, (SELECT coalesce(sum(w.held_mc), 0)::bigint FROM limner.wallet w)"
                                " AS held_mc FROM limner.job_queue")  # fmt: skip
        if violations:
            log.error("invariants.violated", violations=violations, example=example)
        metrics.VIOLATIONS.set(violations)
        metrics.OPEN_HOLDS.set(held["holds"])
        metrics.HELD_CREDITS.set(held["held_mc"] / 1000)
        facts: dict[str, Any] = {"violations": violations, "checked": checked}
        return Done(facts | {"open_holds": held["holds"], "held_mc": held["held_mc"]}, again=violations > 0)

    async def check_whole_book(self, _: datetime) -> Done:
        """Every invariant over everything, once a day; a violation is an error in the log for each."""
        async with self._db.system_tx("limner_audit", "the books are checked over all organizations") as tx:
            found = [f for f in await invariants.check_all(tx) if f.violations]
        for finding in found:
            log.error("invariants.violated", invariant=finding.invariant, violations=finding.violations,
                      example=finding.example)  # fmt: skip
        return Done({"broken": [finding.invariant for finding in found]})

    async def sweep_losers(self, _: datetime) -> Done:
        """Delete objects that runs left and no job refers to, a day after the job's end, organization by organization."""
        deleted = 0
        failed = 0
        for org_id in await organizations(self._db):
            try:
                deleted += await self._sweep(org_id)
            except StoreUnavailable as error:  # what was not swept is still on the list
                failed += 1
                log.warning("sweep.postponed", org=org_id, error=str(error))
        return Done({"deleted": deleted, "failed": failed})

    async def _sweep(self, org_id: UUID) -> int:
        deleted = 0
        while True:
            async with self._db.tenant_tx(org_id, "limner_worker") as tx:
                jobs = await tx.all(LEFTOVERS, {"org": org_id, "after": self._sweep_after_s, "limit": SWEEP_BATCH})
            for job in jobs:
                deleted += await self._sweep_job(org_id, job)
            async with self._db.tenant_tx(org_id, "limner_worker") as tx:
                await tx.execute(SWEPT, [org_id, [job["id"] for job in jobs]])
            if len(jobs) < SWEEP_BATCH:
                return deleted

    async def _sweep_job(self, org_id: UUID, job: Row) -> int:
        wanted = {item.get("key") for item in job["outputs"] or []}
        found = await self._store.list_keys(outputs.prefix(org_id, job["id"]))
        losers = [key for key in found if key not in wanted]
        await self._store.delete(losers)
        return len(losers)
