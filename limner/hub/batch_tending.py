"""What a worker does for batches: ends those whose items have ended, and goes on cancelling what somebody asked to be cancelled."""

import asyncio
from collections.abc import Callable
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.hub import batches
from limner.kit import ids
from limner.kit.bell import Bell
from limner.telemetry import logs

ROLE = "limner_dispatch"
POLL_S = 1.0
PASS_S = 0.2
"""Between two looks, however many items end meanwhile."""
MOST = 200
"""Batches a look."""
log = logs.get("batches")


class BatchTending:
    """`wake()` when jobs have ended returns at once; `run()` works until cancelled. `on_ended`: there is an event to be placed."""

    def __init__(self, db: Database, on_ended: Callable[[], None]) -> None:
        self._db = db
        self._on_ended = on_ended
        self._due = Bell()

    def wake(self) -> None:
        self._due.ring()

    async def run(self) -> None:
        while True:
            await self._due.heard(POLL_S)
            try:
                await self._pass()
            except (DatabaseUnavailable, psycopg.Error) as error:
                log.warning("batches.postponed", error=str(error))
            await asyncio.sleep(PASS_S)

    async def _pass(self) -> None:
        async with self._db.system_tx(ROLE, "batches end in every organization: ids, never a payload") as tx:
            due = await tx.all("SELECT * FROM limner.due_batches(%s)", [MOST])
        for row in due:
            if await (self._cancel if row["cancelling"] else self._end)(row["org_id"], row["batch_id"]):
                self._on_ended()

    async def _end(self, org_id: UUID, batch_id: UUID) -> bool:
        async with self._db.tenant_single(org_id, "limner_worker") as tx:
            row = await tx.get("SELECT limner.end_batch(%s, %s, %s) AS ended", [tx.ctx, batch_id, ids.new()])
        return bool(row["ended"])

    async def _cancel(self, org_id: UUID, batch_id: UUID) -> bool:
        return await batches.cancel(self._db, org_id, None, batch_id, role="limner_worker") != "requested"
