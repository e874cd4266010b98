"""A provider's request, built while the reservation that allows it is being written."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from uuid import UUID

from limner.hub.catalog import Model
from limner.hub.chat import Answering, Asked
from limner.hub.providers.base import Leave
from limner.hub.routing import Candidate

Pieces = AbstractAsyncContextManager[AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class _Begun:
    candidate: Candidate
    leave: asyncio.Future[None]
    task: asyncio.Task[Any]
    pieces: Pieces | None


class HeadStart:
    """Of one call, to the provider that is asked first. `drop` it whatever becomes of the call."""

    def __init__(self, providers: Mapping[str, Answering], asked: Asked, model: Model, job_id: UUID) -> None:
        self._providers = providers
        self._asked = asked
        self._model = model
        self._job_id = job_id
        self._begun: _Begun | None = None

    def begin(self, candidate: Candidate) -> None:
        """Its request is built once the process has nothing better to do. What is wrong with it is told to who asks."""
        if self._begun is not None and self._begun.candidate is candidate:
            return
        self.drop()
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pieces = self._stream(candidate, leave) if self._asked.stream else None
        asking = self._whole(candidate, leave) if pieces is None else _enter(pieces)
        self._begun = _Begun(candidate, leave, asyncio.create_task(asking), pieces)

    async def go(self) -> None:
        """The reservation is written: what was begun is on its way when this returns."""
        if self._begun is not None:
            self._begun.leave.set_result(None)
            await asyncio.sleep(0)  # until it is sent,
            await asyncio.sleep(0)  # and until the loop has handed to the socket what was sent

    async def whole(self, candidate: Candidate) -> bytes:
        """Ask it, with a head start or without. Raises as Answering.whole."""
        begun = self._take(candidate)
        if begun is None:
            return await self._whole(candidate, None)
        _give(begun.leave)
        answer: bytes = await begun.task
        return answer

    def stream(self, candidate: Candidate) -> Pieces:
        """The same, as Answering.stream."""
        begun = self._take(candidate)
        if begun is None or begun.pieces is None:
            return self._stream(candidate, None)
        return _Opening(begun.leave, begun.task, begun.pieces)

    def drop(self) -> None:
        """What was begun and had no leave is never sent; what had is broken off."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            begun.task.cancel()  # nor will anybody hear why it could not be built

    def _take(self, candidate: Candidate) -> _Begun | None:
        if self._begun is None or self._begun.candidate is not candidate:
            self.drop()
            return None
        begun, self._begun = self._begun, None
        return begun

    async def _whole(self, candidate: Candidate, leave: Leave) -> bytes:
        route = candidate.route
        return await self._providers[route.adapter].whole(route, self._asked, self._model, self._job_id, leave)

    def _stream(self, candidate: Candidate, leave: Leave) -> Pieces:
        route = candidate.route
        return self._providers[route.adapter].stream(route, self._asked, self._model, self._job_id, leave)


class _Opening:
    """A stream that is being opened in a task of its own; it is read, and left, by whoever enters this."""

    def __init__(self, leave: asyncio.Future[None], task: asyncio.Task[AsyncIterator[bytes]], pieces: Pieces) -> None:
        self._leave = leave
        self._task = task
        self._pieces = pieces

    async def __aenter__(self) -> AsyncIterator[bytes]:
        _give(self._leave)
        return await self._task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        return await self._pieces.__aexit__(kind, error, at)


def _give(leave: asyncio.Future[None]) -> None:
    if not leave.done():
        leave.set_result(None)


async def _enter(pieces: Pieces) -> AsyncIterator[bytes]:
    return await pieces.__aenter__()
