"""How processes learn of news at once: a NOTIFY of its own after the commit, many things sharing one.

Inside a transaction that writes, a NOTIFY takes a lock that all commits share; here it is its own statement, at most one
each 20 ms a process, and a one-second poll stands behind it in case it is lost.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable

CHANNEL = "limner_jobs"
NEWS = "limner_news"
QUIET_S = 0.02
PAYLOAD_IDS = 200
"""A NOTIFY carries less than 8,000 bytes; an id has 32, and a comma."""
MOST_PAYLOADS = 20
EVERYBODY = "*"
EVENT = "event"


class Waker:
    """Tells the workers that there is a job: `wake()` returns at once; `run()` sends until cancelled.

    `event`: there is an event to be placed, too.
    """

    def __init__(self, db: Database, role: str) -> None:
        self._db = db
        self._role = role
        self._due = asyncio.Event()
        self._event = False

    def wake(self, *, event: bool = False) -> None:
        self._event |= event
        self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            notice = f"NOTIFY {CHANNEL}" + (f", '{EVENT}'" if self._event else "")
            self._event = False
            with contextlib.suppress(DatabaseUnavailable, psycopg.Error):  # the poll finds the job
                async with self._db.statement(self._role) as conn:
                    await conn.execute(notice, prepare=False)
            await asyncio.sleep(QUIET_S)


class Herald:
    """Tells the APIs whose news there is: `tell()` returns at once; `run()` sends until cancelled."""

    def __init__(self, db: Database, role: str) -> None:
        self._db = db
        self._role = role
        self._due = asyncio.Event()
        self._subjects: set[UUID] = set()

    def tell(self, subjects: Iterable[UUID]) -> None:
        """`subjects`: ids of jobs, or whatever else events are about."""
        self._subjects.update(subjects)
        if self._subjects:
            self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            told = [subject.hex for subject in self._subjects]
            self._subjects.clear()
            payloads = [",".join(told[n : n + PAYLOAD_IDS]) for n in range(0, len(told), PAYLOAD_IDS)]
            if len(payloads) > MOST_PAYLOADS:
                payloads = [EVERYBODY]
            with contextlib.suppress(DatabaseUnavailable, psycopg.Error):  # the poll finds the news
                async with self._db.statement(self._role) as conn:
                    await conn.execute("SELECT pg_notify(%s, p) FROM unnest(%s::text[]) p", [NEWS, payloads])
            await asyncio.sleep(QUIET_S)


async def ring(db: Database, role: str, channel: str, subject: UUID) -> None:
    """One notice about one thing, for whoever listens on a channel of its own. It may get lost."""
    with contextlib.suppress(DatabaseUnavailable, psycopg.Error):
        async with db.statement(role) as conn:
            await conn.execute("SELECT pg_notify(%s, %s)", [channel, subject.hex])


def read_news(payload: str) -> set[UUID] | None:
    """Whose news a NOTIFY tells of; None: anybody's."""
    if payload == EVERYBODY:
        return None
    with contextlib.suppress(ValueError):
        return {UUID(hex=text) for text in payload.split(",") if text}
    return None
