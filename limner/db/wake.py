"""How a worker learns of a new job at once: a NOTIFY of its own after the commit, many jobs sharing one.

Inside a transaction that writes, a NOTIFY takes a lock that all commits share; here it is its own statement, at most one
each 20 ms a process, and a one-second poll stands behind it in case it is lost.
"""

import asyncio
import contextlib

import psycopg

from limner.db.pools import Database, DatabaseUnavailable

CHANNEL = "limner_jobs"
QUIET_S = 0.02


class Waker:
    """`wake()` returns at once; `run()` sends until cancelled."""

    def __init__(self, db: Database, role: str) -> None:
        self._db = db
        self._role = role
        self._due = asyncio.Event()

    def wake(self) -> None:
        self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            with contextlib.suppress(DatabaseUnavailable, psycopg.Error):  # the poll finds the job
                async with self._db.statement(self._role) as conn:
                    await conn.execute(f"NOTIFY {CHANNEL}", prepare=False)
            await asyncio.sleep(QUIET_S)
