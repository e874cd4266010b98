"""Submits on their way into the database: those that arrive together share a commit.

Nobody is made to wait for company. A lane sends what has gathered while its last commit was under way: one request on
an idle server, a dozen on a busy one. What a batch leaves out (jobs.submit_many) goes alone, beside the next batch, so
that nobody waits for another tenant's lock. Each submit still has a job, a hold and a queue row of its own or nothing.
"""

import asyncio
from dataclasses import dataclass, replace
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.hub import jobs
from limner.kit import ids

LANES = 2
BATCH = 32
TRIES = 3


@dataclass(frozen=True, slots=True)
class _Waiting:
    org_id: UUID
    job_id: UUID
    request: jobs.Submission
    answer: "asyncio.Future[jobs.Submitted | None]"


def _app(one: _Waiting) -> UUID:
    return one.request.app_id


class Intake:
    """Takes submissions of any organizations. At most `bound` wait at a time; the next is DatabaseUnavailable."""

    def __init__(self, db: Database, bound: int) -> None:
        self._db = db
        self._bound = bound
        self._lanes: list[list[_Waiting]] = [[] for _ in range(LANES)]
        self._running: list[asyncio.Task[None] | None] = [None] * LANES

    async def submit(self, org_id: UUID, request: jobs.Submission, *, alone: bool) -> jobs.Submitted:
        """The job, accepted or replayed. Raises what jobs.submit raises, and DatabaseUnavailable."""
        job_id = ids.new()
        if not alone:
            submitted = await self._join(org_id, job_id, request)
            if submitted is not None:
                return submitted
        for attempt in range(TRIES):
            try:
                async with self._db.tenant_single(org_id) as tx:
                    submitted = await jobs.submit(tx, job_id, request, again=not alone or attempt > 0)
                    if submitted.replayed and submitted.job_id == job_id:
                        return replace(submitted, replayed=False)  # our own first try had committed
                    return submitted
            except psycopg.OperationalError as error:
                if attempt == TRIES - 1:
                    raise DatabaseUnavailable(str(error)) from error
                await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError

    async def _join(self, org_id: UUID, job_id: UUID, request: jobs.Submission) -> jobs.Submitted | None:
        """None: the batch left this one out, or failed; whether it was committed is not known then."""
        # one wallet's submits keep to one lane, so that they do not lock each other out
        payer = (org_id, request.app_id, request.external_id) if request.external_id is not None else (org_id,)
        place = hash(payer) % LANES
        lane = self._lanes[place]
        if len(lane) >= self._bound:
            raise DatabaseUnavailable("too many submits are waiting for the database")
        answer: asyncio.Future[jobs.Submitted | None] = asyncio.get_running_loop().create_future()
        lane.append(_Waiting(org_id, job_id, request, answer))
        if self._running[place] is None:
            self._running[place] = asyncio.create_task(self._run(place))
        return await answer

    async def _run(self, place: int) -> None:
        lane = self._lanes[place]
        while lane:
            batch = lane[:BATCH]
            del lane[:BATCH]
            await self._send(sorted(batch, key=_app))
        self._running[place] = None

    async def _send(self, batch: list[_Waiting]) -> None:
        placed: dict[UUID, jobs.Submitted] = {}
        try:
            async with self._db.shared_single() as tx:
                rows = [(self._db.sign(one.org_id), one.job_id, one.request) for one in batch]
                placed = await jobs.submit_many(tx, rows)
        except psycopg.Error:  # all of it was written or none: each asks for itself
            pass
        except Exception as error:  # no connection to be had: those who wait must hear of it
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one in batch:
            if not one.answer.done():  # else its request is gone
                one.answer.set_result(placed.get(one.job_id))
