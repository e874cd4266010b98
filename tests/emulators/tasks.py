"""What emulated providers of asynchronous tasks have in common: tasks that take a while, end as they are told, and are counted."""

import asyncio
import os
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from aiohttp import web

from tests.emulators.openai_server import STALL_S, Says, hang_up, listening, say
from tests.emulators.provider import KILL
from tests.hub.doubles import png

Misfortune = Literal["stalls", "hangs up", "hangs up afterwards"]
"""It takes the request and says nothing; closes the line before it has done anything, or when all is done and nothing said."""
Turn = Says | Misfortune | None
Fate = Any
"""How a task ends: "succeeds", "fails", "hangs", "is forgotten", or what the emulator's own says."""
Kind = Literal["create", "poll", "cancel", "file"]


@dataclass
class Task:
    """One that was created, and costs money. `asked`: the request's body."""

    id: str
    asked: dict[str, Any]
    headers: Mapping[str, str]
    fate: Fate
    polls: int = 0
    cancelled: bool = False

    @property
    def name(self) -> str:
        """What tells jobs apart: their prompts."""
        return str(self.asked.get("input", self.asked).get("prompt"))


class TaskServer:
    """`created`: tasks, in order. `requests`: how many of each kind came. `lasts`: so many polls a task is under way for."""

    def __init__(self, key: str | None) -> None:
        self.origin = ""
        self.key = key
        self.created: list[Task] = []
        self.requests: Counter[Kind] = Counter()
        self.lasts = 1
        self.picture = png(8)
        self._made = 0
        self._turns: dict[Kind, deque[Turn]] = {kind: deque() for kind in ("create", "poll", "cancel", "file")}
        self._fates: deque[Fate] = deque()

    @property
    def url(self) -> str:
        """What a provider's base_url is."""
        return self.origin

    @property
    def environment(self) -> dict[str, Any]:
        """What a process needs to reach it, with its key, and to fetch what it made."""
        keys = orjson.dumps({self.origin: self.key}).decode()
        return {
            "LIMNER_EGRESS_PLAIN_ORIGINS": self.origin,
            "LIMNER_PROVIDER_KEYS": keys,
            "LIMNER_EGRESS_ALLOW_ORIGINS": self.origin,
        }

    def then(self, *turns: Turn, on: Kind = "create") -> None:
        """How the next requests of a kind fare, one each; after them all is well."""
        self._turns[on].extend(turns)

    def ends(self, *fates: Fate) -> None:
        """How the next tasks end, one each; after them all succeed."""
        self._fates.extend(fates)

    def calm_down(self) -> None:
        """All is well from now on."""
        self._fates.clear()
        for turns in self._turns.values():
            turns.clear()

    def forget(self) -> None:
        """As it was when it began."""
        self.calm_down()
        self.created.clear()
        self.requests.clear()
        self.lasts = 1
        self.picture = png(8)

    def of(self, name: str) -> list[Task]:
        """The tasks of one prompt."""
        return [task for task in self.created if task.name == name]

    def find(self, task_id: str) -> Task | None:
        """None: there never was one, or it is forgotten."""
        found = next((task for task in self.created if task.id == task_id), None)
        return None if found is None or found.fate == "is forgotten" else found

    def new(self, request: web.Request, asked: dict[str, Any]) -> Task:
        """A task that costs money from now on."""
        fate = self._fates.popleft() if self._fates else "succeeds"
        self._made += 1  # no name comes twice, whatever is forgotten
        task = Task(f"task{self._made:06d}", asked, request.headers, fate)
        self.created.append(task)
        return task

    async def served(self, request: web.Request, kind: Kind, answer: Any) -> web.StreamResponse:
        """`answer` (a coroutine function) after the turn that this request has."""
        self.requests[kind] += 1
        turn = self._turns[kind].popleft() if self._turns[kind] else None
        if isinstance(turn, Says):
            return say(turn)
        if turn == "stalls":
            await asyncio.sleep(STALL_S)
        if turn == "hangs up":
            return hang_up(request)
        if kind != "file" and self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return say(self.unauthorized(dict(request.headers)))
        answered = await answer(request)
        if KILL in request.headers:
            os.kill(int(request.headers[KILL]), signal.SIGKILL)
        return hang_up(request) if turn == "hangs up afterwards" else answered

    def unauthorized(self, headers: dict[str, str]) -> Says:
        """What a wrong key is told. It repeats everything."""
        return Says(401, {"title": "Unauthenticated", "detail": f"You did not pass a valid token: {headers}"})

    def routes(self) -> list[web.RouteDef]:
        """The emulator's own."""
        raise NotImplementedError

    async def file(self, request: web.Request) -> web.StreamResponse:
        """GET /files/…: without a key, as a delivery host's."""

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(body=self.picture, content_type="image/png")

        return await self.served(request, "file", answer)


@asynccontextmanager
async def running(server: TaskServer) -> AsyncIterator[None]:
    """The server on a port of its own."""
    async with listening([*server.routes(), web.get("/files/{path:.*}", server.file)]) as server.origin:
        yield
