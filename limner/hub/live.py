"""Jobs as they happen: one board an API process, which reads for everybody who follows a job and hands each what is new.

A NOTIFY says whose news there is; a poll each second finds what a lost one would have told. However many follow, news
are read with one statement an organization.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.db.wake import NEWS, read_news
from limner.events import log
from limner.events.log import Event
from limner.telemetry import logs, metrics
from limner.web.errors import ApiError

ROLE = "limner_api"
POLL_S = 1.0
PASS_S = 0.005
"""Between two readings, so that news that come together are read together."""
PROGRESS = """
SELECT q.job_id, q.percent, q.stage FROM limner.job_queue q WHERE q.org_id = %s AND q.job_id = ANY (%s) AND q.lease_owner IS NOT NULL
"""
logger = logs.get("live")


@dataclass(frozen=True, slots=True)
class Progress:
    """The latest word of a run: not in the log, and nothing is missed by missing it."""

    percent: int
    stage: str


class Follower:
    """One client that follows one job. A client that reads slowly costs no memory: of progress only the latest is kept."""

    def __init__(self, org_id: UUID, app_id: UUID, job_id: UUID, after: int) -> None:
        self.org_id = org_id
        self.app_id = app_id
        self.job_id = job_id
        self.after = after
        self._events: list[Event] = []
        self._progress: Progress | None = None
        self._told: Progress | None = None
        self._stirred = asyncio.Event()

    def put(self, event: Event) -> None:
        """Passed over when it was handed out before."""
        if event.seq is not None and event.seq > self.after:
            self.after = event.seq
            self._events.append(event)
            self._stirred.set()

    def note(self, progress: Progress) -> None:
        if progress != self._told:
            self._progress = progress
            self._stirred.set()

    def rouse(self) -> None:
        """Have `wait` return although nothing is new."""
        self._stirred.set()

    async def wait(self, seconds: float) -> tuple[list[Event], Progress | None]:
        """Events in their order, each once, and progress where it changed; nothing when so long nothing came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        self._stirred.clear()
        events, self._events = self._events, []
        progress, self._progress = self._progress, None
        self._told = progress or self._told
        return events, progress


class LiveBoard:
    """`run()` until cancelled; `follow()` for as long as a client listens. At most `most` follow, `most_of_app` of one app."""

    def __init__(self, db: Database, most: int, most_of_app: int) -> None:
        self._db = db
        self._most = most
        self._most_of_app = most_of_app
        self._followers: dict[UUID, set[Follower]] = defaultdict(set)
        self._of_app: dict[UUID, int] = defaultdict(int)
        self._open = 0
        self._due: set[UUID] = set()
        self._stirred = asyncio.Event()
        self.closing = False

    def close(self) -> None:
        """The process is about to end: every stream ends, and its client comes back to another process."""
        self.closing = True
        for followers in self._followers.values():
            for follower in followers:
                follower.rouse()

    def admit(self, app_id: UUID) -> None:
        """Raises ApiError 503 `too_many_streams`."""
        for limit, size, is_open in (
            ("streams_per_app", self._most_of_app, self._of_app.get(app_id, 0)),
            ("streams", self._most, self._open),
        ):
            if is_open >= size:
                raise ApiError(
                    503, "too_many_streams", f"{size} streams are open: close some, or poll the job instead.",
                    extra={"limit": limit, "limit_size": size}, headers={"retry-after": "5"},
                )  # fmt: skip

    @contextlib.contextmanager
    def follow(self, org_id: UUID, app_id: UUID, job_id: UUID, after: int) -> Iterator[Follower]:
        """What is new of the job from the position `after` on."""
        follower = Follower(org_id, app_id, job_id, after)
        self._followers[job_id].add(follower)
        self._count(app_id, 1)
        self._stir({job_id})
        try:
            yield follower
        finally:
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]
            self._count(app_id, -1)

    async def run(self) -> None:
        listening = asyncio.create_task(self._listen())
        polling = asyncio.create_task(self._poll())
        try:
            while True:
                await self._stirred.wait()
                self._stirred.clear()
                due, self._due = self._due, set()
                await self._read(due)
                await asyncio.sleep(PASS_S)
        finally:
            listening.cancel()
            polling.cancel()

    def _count(self, app_id: UUID, change: int) -> None:
        self._open += change
        metrics.STREAMS.inc(change)
        self._of_app[app_id] += change
        if not self._of_app[app_id]:
            del self._of_app[app_id]

    def _stir(self, jobs: set[UUID]) -> None:
        self._due |= jobs
        self._stirred.set()

    async def _read(self, jobs: set[UUID]) -> None:
        followed: dict[UUID, set[Follower]] = defaultdict(set)
        for job_id in jobs:
            for follower in self._followers.get(job_id, ()):
                followed[follower.org_id].add(follower)
        for org_id, followers in followed.items():
            try:
                async with self._db.tenant_tx(org_id, ROLE) as tx:
                    await _hand_out(tx, followers)
            except (DatabaseUnavailable, psycopg.Error) as error:
                logger.warning("live.postponed", error=str(error))  # the poll comes back to it

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self._stir(set(self._followers))

    async def _listen(self) -> None:
        while True:
            try:
                conn = await self._db.direct(ROLE)
                async with conn:
                    await conn.execute(f"LISTEN {NEWS}")
                    async for notice in conn.notifies():
                        told = read_news(notice.payload)
                        self._stir({job for job in self._followers if told is None or job in told})
            except Exception as error:  # nothing may end the listening but the process itself
                logger.warning("listen.lost", error=str(error) or type(error).__name__)
            await asyncio.sleep(POLL_S)


async def _hand_out(tx: Tx, followers: set[Follower]) -> None:
    of_job: dict[UUID, list[Follower]] = defaultdict(list)
    for follower in followers:
        of_job[follower.job_id].append(follower)
    after = {job_id: min(one.after for one in many) for job_id, many in of_job.items()}
    for event in await log.list_news(tx, after):
        for follower in of_job[event.subject_id]:
            follower.put(event)
    for row in await tx.all(PROGRESS, [tx.org_id, list(of_job)]):
        for follower in of_job[row["job_id"]]:
            follower.note(Progress(row["percent"], row["stage"]))
