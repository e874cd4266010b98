"""The duty that adds ended jobs to the sums of usage, organization by organization, a batch a commit.

Any worker may do it, and die at it: how far an organization's sums reach is written in the commit that adds to them.
"""

from datetime import datetime
from uuid import UUID

import psycopg

from limner.db.pools import Database
from limner.db.tx import Tx
from limner.tasks.chores import Done
from limner.telemetry import logs

EVERY_S = 10.0
AT_ONCE = 5000
"""Events a commit."""
ROLE = "limner_worker"
log = logs.get("chores")
BEHIND = """
SELECT o.org_id FROM limner.organization o LEFT JOIN limner.usage_rolled r ON r.org_id = o.org_id
 WHERE EXISTS (SELECT 1 FROM limner.event_order e WHERE e.org_id = o.org_id AND e.seq > coalesce(r.seq, 0))
 ORDER BY o.org_id
"""


class UsageRolling:
    """What a worker does for the sums of usage."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def roll(self, _: datetime) -> Done:
        """All that has its place in the log by now."""
        async with self._db.system_tx("limner_audit", "the duty asks whose usage is not in the sums yet") as tx:
            behind: list[UUID] = [row["org_id"] for row in await tx.all(BEHIND)]
        events = failed = 0
        for org_id in behind:
            try:
                events += await self._roll(org_id)
            except psycopg.Error as error:  # one organization's trouble does not keep the others waiting
                failed += 1
                log.warning("chore.postponed", org=org_id, error=str(error))
        return Done({"organizations": len(behind), "events": events, "failed": failed})

    async def _roll(self, org_id: UUID) -> int:
        events = 0
        while True:
            async with self._db.tenant_single(org_id, ROLE) as tx:
                done = await roll(tx, AT_ONCE)
            events += done
            if done < AT_ONCE:
                return events


async def roll(tx: Tx, most: int) -> int:
    """Add what the organization's next `most` events ended; how many there were: 0 also when another worker is at it."""
    row = await tx.get("SELECT limner.roll_usage(%s, %s) AS events", [tx.ctx, most])
    return int(row["events"])
