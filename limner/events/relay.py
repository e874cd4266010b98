"""The relay: gives events their place in the log once nothing older can still commit, and says whose news there is.

Every worker process runs one; the lock on one row makes them take turns, so any of them may die.
"""

import asyncio
from collections.abc import Callable

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.wake import Herald
from limner.kit.bell import Bell
from limner.telemetry import logs, metrics

ROLE = "limner_dispatch"
MOST = 2000
"""Events a pass."""
PASS_S = 0.01
"""Between two passes, so that what commits together is placed together."""
WAITING_S = 0.05
"""Between two passes while all that is left waits for an older transaction to end."""
POLL_S = 1.0
log = logs.get("relay")


class Relay:
    """`wake()` after a commit with an event returns at once; `run()` works until cancelled.

    `on_placed` is called after a pass that placed something.
    """

    def __init__(self, db: Database, herald: Herald, on_placed: Callable[[], None] | None = None) -> None:
        self._db = db
        self._herald = herald
        self._on_placed = on_placed
        self._due = Bell()

    def wake(self) -> None:
        self._due.ring()

    async def run(self) -> None:
        while True:
            await self._due.heard(POLL_S)
            try:
                pause_s = await self._pass()
            except (DatabaseUnavailable, psycopg.Error) as error:
                log.warning("relay.postponed", error=str(error))
                pause_s = POLL_S
            await asyncio.sleep(pause_s)

    async def _pass(self) -> float:
        """Place what can be placed; how long to wait before the next pass."""
        async with self._db.system_tx(ROLE, "the log's order reaches over organizations: ids, never a payload") as tx:
            found = await tx.get("SELECT placed, more, subjects, lag_s FROM limner.relay_events(%s)", [MOST])
        if found["more"]:
            self._due.ring()
        if not found["placed"]:
            return WAITING_S if found["more"] else PASS_S
        metrics.EVENTS_PLACED.inc(found["placed"])
        metrics.EVENT_LAG.observe(found["lag_s"])
        self._herald.tell(found["subjects"])
        if self._on_placed is not None:
            self._on_placed()
        return PASS_S
