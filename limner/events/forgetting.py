"""How long it is told what became of each webhook: a duty that forgets deliveries, and their tries, that ended long ago."""

from datetime import datetime

from limner.db.pools import Database
from limner.events import deliveries
from limner.tasks.chores import Done, organizations

FORGET_EVERY_S = 3600.0
BATCH = 1000


class Forgetting:
    """`keep_days`: after their ends; 0 is for ever."""

    def __init__(self, db: Database, keep_days: int) -> None:
        self._db = db
        self._keep_days = keep_days

    async def forget_deliveries(self, _: datetime) -> Done:
        """Every organization in turn, a batch to a transaction."""
        if self._keep_days == 0:
            return Done({"forgotten": 0})
        forgotten = 0
        for org_id in await organizations(self._db):
            gone = BATCH
            while gone == BATCH:
                async with self._db.tenant_single(org_id, "limner_worker") as tx:
                    gone = await deliveries.forget(tx, self._keep_days, BATCH)
                forgotten += gone
        return Done({"forgotten": forgotten})
