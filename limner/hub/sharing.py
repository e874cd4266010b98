"""A worker's starts, intents and finishes, of any organizations, that share a commit (`limner.work_many`).

What a batch leaves out (a row or a wallet that somebody holds, a lease that was lost) or fails with is answered None,
and the run asks for it alone: there it waits, or hears why not. Each is written with its own fence compared, or not at all.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.hub import runs
from limner.hub.runs import Intent, Lease, Work
from limner.kit import ids
from limner.kit.gather import Gather

ROLE = "limner_worker"
LANES = 2  # one organization's writes keep to one, so that they do not lock each other's wallets out
BATCH = 64
BOUND = 100_000  # a worker's slots bound it long before
LINGER_S = 0.025
COMPANY = 16
"""Finishes that nobody waits for go together: so many, or what has come in LINGER_S."""


_Writes = Gather[tuple[str, Lease, dict[str, Any]], Any]


class SharedWrites:
    """One for each process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._gather: _Writes = Gather(self._send, lanes=LANES, size=BATCH, bound=BOUND)
        self._lingering: _Writes = Gather(
            self._send, lanes=1, size=BATCH, bound=BOUND, linger_s=LINGER_S, company=COMPANY
        )

    async def start(self, lease: Lease) -> Work | None:
        """runs.start; None: ask alone."""
        answer = await self._gather(("start", lease, {"event": ids.new()}), lease.org_id)
        return None if answer is None else runs.work(answer)

    async def intend(
        self, lease: Lease, step: str, provider: str, provider_model: str, rule: str, *,
        provider_id: UUID | None = None, own_key: bool = False,
    ) -> Intent | None:  # fmt: skip
        """runs.intend for a first send; None: ask alone."""
        args = {
            "step": step,
            "provider": provider,
            "provider_model": provider_model,
            "rule": rule,
            "provider_id": provider_id,
            "own_key": own_key,
        }
        answer = await self._gather(("intend", lease, args), lease.org_id)
        return None if answer is None else Intent(**answer)

    async def finish(self, lease: Lease, ending: runs.Closing, *, lingers: bool = False) -> bool:
        """runs.finish; False: ask alone, by the same fence, also when the answer was lost.

        `lingers`: nobody waits for it, so that it may wait for others to share its commit.
        """
        gather = self._lingering if lingers else self._gather
        args = runs.closing_args(ending) | {"transfer": ids.new(), "event": ids.new()}
        return await gather(("finish", lease, args), lease.org_id) is not None

    def hurry(self) -> None:
        """Somebody waits for finishes that linger."""
        self._lingering.hurry()

    async def _send(self, batch: Sequence[tuple[str, Lease, dict[str, Any]]]) -> Sequence[Any]:
        answers: list[Any] = [None] * len(batch)
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for place, (verb, lease, args) in enumerate(batch):
            rows[verb].append({"place": place, "org": lease.org_id, "job": lease.job_id, "fence": lease.fence, **args})
        try:
            async with self._db.shared_single({lease.org_id for _, lease, _ in batch}, ROLE) as tx:
                for place, answer in await runs.work_many(tx, rows):
                    answers[place] = answer
        except (psycopg.Error, DatabaseUnavailable):  # written whole or not at all: each asks for itself
            return [None] * len(batch)
        return answers
