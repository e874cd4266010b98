"""A provider's request, built while the reservation that allows it is being written."""

import asyncio
from collections.abc import Mapping
from uuid import UUID

from limner.hub.catalog import Model
from limner.hub.chat import Answering, Asked
from limner.hub.routing import Candidate


class HeadStart:
    """Of one call for a whole answer, to the provider that is asked first. `drop` it whatever becomes of the call."""

    def __init__(self, providers: Mapping[str, Answering], asked: Asked, model: Model, job_id: UUID) -> None:
        self._providers = providers
        self._asked = asked
        self._model = model
        self._job_id = job_id
        self._begun: tuple[Candidate, asyncio.Future[None], asyncio.Task[bytes]] | None = None

    def begin(self, candidate: Candidate) -> None:
        """Its request is built once the process has nothing better to do. What is wrong with it, `answer` tells."""
        if self._asked.stream or (self._begun is not None and self._begun[0] is candidate):
            return
        self.drop()
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begun = candidate, leave, asyncio.create_task(self._ask(candidate, leave))

    async def answer(self, candidate: Candidate) -> bytes:
        """Ask it, with a head start or without. Raises as Answering.whole."""
        if self._begun is None or self._begun[0] is not candidate:
            self.drop()
            return await self._ask(candidate, None)
        _, leave, task = self._begun
        self._begun = None
        leave.set_result(None)
        return await task

    def drop(self) -> None:
        """Of what was begun and not asked nothing was sent, and nothing will be."""
        if self._begun is not None:
            _, _, task = self._begun
            self._begun = None
            task.cancel()  # nor will anybody hear why it could not be built

    async def _ask(self, candidate: Candidate, leave: asyncio.Future[None] | None) -> bytes:
        route = candidate.route
        return await self._providers[route.adapter].whole(route, self._asked, self._model, self._job_id, leave)
