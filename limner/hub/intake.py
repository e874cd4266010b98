"""Submits on their way into the database: those that arrive together share a commit.

Nobody is made to wait for company. There is one lane, which sends what has gathered while its last commit was under
way: one request on an idle server, a dozen on a busy one. (Two lanes make half the batches' size, and are slower:
docs/decisions/0019.) What a batch leaves out (jobs.submit_many) goes alone, beside the next batch, so
that nobody waits for another tenant's lock. Each submit still has a job, a hold and a queue row of its own or nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.hub import jobs
from limner.kit import ids
from limner.kit.gather import Full, Gather

BATCH = 32
TRIES = 3
_Waiting = tuple[UUID, UUID, jobs.Submission]
"""Organization, job id, request."""


class Intake:
    """Takes submissions of any organizations. At most `bound` wait; the next is DatabaseUnavailable."""

    def __init__(self, db: Database, bound: int) -> None:
        self._db = db
        self._gather: Gather[_Waiting, jobs.Submitted | None] = Gather(self._send, lanes=1, size=BATCH, bound=bound)

    async def submit(
        self, org_id: UUID, request: jobs.Submission, *, alone: bool, meanwhile: Callable[[], None] | None = None
    ) -> jobs.Submitted:
        """The job, accepted or replayed. Raises what jobs.submit raises, and DatabaseUnavailable.

        `meanwhile` is called if the process has time while it waits for this one.
        """
        job_id = request.job_id or ids.new()
        if alone:
            return await self._alone(org_id, job_id, request, again=False)
        with self._gather.first() as first:
            if first:  # a batch of one costs more
                if meanwhile is not None:
                    meanwhile()
                return await self._alone(org_id, job_id, request, again=False)
        submitted = await self._join(org_id, job_id, request)
        return submitted or await self._alone(org_id, job_id, request, again=True)

    async def _alone(self, org_id: UUID, job_id: UUID, request: jobs.Submission, *, again: bool) -> jobs.Submitted:
        for attempt in range(TRIES):
            try:
                async with self._db.tenant_single(org_id) as tx:
                    submitted = await jobs.submit(tx, job_id, request, again=again or attempt > 0)
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
        try:
            return await self._gather((org_id, job_id, request), None)
        except Full:
            raise DatabaseUnavailable("too many submits are waiting for the database") from None

    async def _send(self, batch: Sequence[_Waiting]) -> list[jobs.Submitted | None]:
        try:
            async with self._db.shared_single({org_id for org_id, _, _ in batch}) as tx:
                placed = await jobs.submit_many(tx, batch)
        except psycopg.Error:  # all of it was written or none: each asks for itself
            return [None] * len(batch)
        return [placed.get(job_id) for _, job_id, _ in batch]
