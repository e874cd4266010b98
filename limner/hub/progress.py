"""How far runs are: the latest word of each, all of a worker's in one statement at most twice a second.

A run that ends before its first word would be written costs nothing.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.hub import runs
from limner.hub.runs import Lease

EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class News:
    """Who is told: `committed` after a commit with an event in it, `moved` of the jobs whose progress was written."""

    committed: Callable[[], None] = lambda: None
    moved: Callable[[Iterable[UUID]], None] = lambda _: None


NOBODY = News()


class ProgressBoard:
    """One for each worker process."""

    def __init__(self, db: Database, news: News) -> None:
        self._db = db
        self._news = news
        self._latest: dict[Lease, tuple[int, str]] = {}
        self._writing: asyncio.Task[None] | None = None

    async def note(self, lease: Lease, percent: int, stage: str) -> None:
        """Remember it; it is written within EVERY_S."""
        self._latest[lease] = (percent, stage)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    def forget(self, lease: Lease) -> None:
        """The run has ended, or is about to."""
        self._latest.pop(lease, None)

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if not self._latest:
                self._writing = None
                return
            reports = [(lease, percent, stage) for lease, (percent, stage) in self._latest.items()]
            self._latest.clear()
            try:
                async with self._db.system_tx("limner_dispatch", "progress stands in the queue rows: no payload") as tx:
                    await runs.report_many(tx, reports)
            except (psycopg.Error, DatabaseUnavailable):
                continue  # progress is a courtesy; the runs go on
            self._news.moved([lease.job_id for lease, _, _ in reports])
