"""Clients that wait for a job in the request that made it (`Prefer: wait=n`): by the board that streams are read from.

Nothing is polled for them. A place is free again when the job has ended, the time is up, or the client has gone.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import UUID

from starlette.requests import Request

from limner.hub import events
from limner.hub.live import Follower, LiveBoard
from limner.web.caller import Caller
from limner.web.errors import ApiError

LOOK_S = 5.0
"""How long a wait may go unlooked at: the board wakes it sooner."""


class WaitingRoom:
    """At most `most` wait at once in this process, none longer than `longest_s`; they count among the board's streams."""

    def __init__(self, board: LiveBoard, most: int, longest_s: int) -> None:
        self._board = board
        self._most = most
        self.longest_s = longest_s
        self.waiting = 0

    async def until_ended(self, request: Request, caller: Caller, job_id: UUID, seconds: float) -> bool | None:
        """True when the job has ended within so many seconds; None when nobody waited: every place is taken."""
        try:
            self._board.admit(caller.app_id)
        except ApiError:
            return None
        if self.waiting >= self._most:
            return None
        self.waiting += 1
        try:
            with self._board.follow(caller.org_id, caller.app_id, job_id, 0) as follower:
                async with _left(request) as left:
                    return await self._ended(follower, left, time.monotonic() + seconds)
        finally:
            self.waiting -= 1

    async def _ended(self, follower: Follower, left: "asyncio.Task[None]", until: float) -> bool:
        left.add_done_callback(lambda _: follower.rouse())
        while (rest := until - time.monotonic()) > 0 and not self._board.closing and not left.done():
            news, _ = await follower.wait(min(rest, LOOK_S))
            if any(event.type in events.TERMINAL for event in news):
                return True
        return False


@contextlib.asynccontextmanager
async def _left(request: Request) -> AsyncIterator["asyncio.Task[None]"]:
    """A task that is done when the client has gone. The request's body was read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(watch())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
