"""What emulated providers share: a key, a count of what they were asked and did, and how the next requests fare.

Each speaks its own interface over a real socket; the fates, and how they are ordered, are those of `openai_server`.
"""

import asyncio
import os
import signal
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import orjson
from aiohttp import web

from tests.emulators.openai_server import STALL_S, Asked, Says, Turn, half, hang_up, listening, say
from tests.emulators.provider import KILL


class FarServer:
    """`asked`: every request; `keys`, `drawn` and `written` by the X-Client-Request-Id that came with it, limner's job id."""

    models: ClassVar[tuple[str, ...]] = ()
    version = ""
    """Of the address, before every path."""

    def __init__(self, key: str | None = None) -> None:
        self.origin = ""
        self.key = key
        self.asked: list[Asked] = []
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.drawn: dict[str, int] = defaultdict(int)
        self.written: dict[str, int] = defaultdict(int)
        self.gone = asyncio.Event()
        """Somebody left in the middle of a stream."""
        self.tokens = 20
        self.token_s = 0.0
        self.changes: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.garbles: Callable[[list[bytes]], list[bytes]] = lambda events: events
        """What becomes of a stream's events on the way."""
        self._turns: deque[Turn] = deque()
        self._always: Turn = None

    @property
    def url(self) -> str:
        return f"{self.origin}/{self.version}"

    @property
    def environment(self) -> dict[str, Any]:
        keys = orjson.dumps({self.origin: self.key}).decode()
        return {"LIMNER_EGRESS_PLAIN_ORIGINS": self.origin, "LIMNER_PROVIDER_KEYS": keys}

    def then(self, *turns: Turn) -> None:
        """How the next requests fare, one each; after them all is well."""
        self._turns.extend(turns)

    def always(self, turn: Turn) -> None:
        """How every request fares that has no turn of its own."""
        self._always = turn

    def calm_down(self) -> None:
        """All is well from now on."""
        self._turns.clear()
        self._always = None
        self.tokens, self.token_s = 20, 0.0
        self.changes = lambda answer: answer
        self.garbles = lambda events: events
        self.gone.clear()

    # What each interface has its own words for

    def refusal(self, request: web.Request, asked: Asked) -> Says | None:
        """What is wrong with a request: its key, its fields, its model."""
        raise NotImplementedError

    def work(self, asked: Asked) -> dict[str, Any]:
        """The whole answer."""
        raise NotImplementedError

    def streams(self, asked: Asked) -> bool:
        raise NotImplementedError

    def events(self, asked: Asked) -> list[bytes]:
        """A stream's: the middle ones are its tokens."""
        raise NotImplementedError

    def list_models(self, request: web.Request) -> Says:
        raise NotImplementedError

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return say(self.list_models(request))
        asked = Asked(request.path, request.headers, orjson.loads(await request.read()))
        job = request.headers.get("X-Client-Request-Id", "")
        self.asked.append(asked)
        self.keys[job].append(job)
        turn = self._turns.popleft() if self._turns else self._always
        if isinstance(turn, Says):
            return say(turn)
        if turn == "hangs up":
            return hang_up(request)
        if turn in {"stalls", "is slow"}:
            await asyncio.sleep(STALL_S if turn == "stalls" else 1)
        wrong = self.refusal(request, asked)
        if wrong is not None:
            return say(wrong)
        if self.streams(asked):
            return await self._stream(request, asked, turn)
        answer = self.changes(self.work(asked))
        self.drawn[job] += 1
        if KILL in request.headers:
            os.kill(int(request.headers[KILL]), signal.SIGKILL)
        if turn == "hangs up afterwards":
            return hang_up(request)
        body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        if turn in {"breaks off", "stalls after its headers"}:
            return await half(request, body, {}, 0 if turn == "breaks off" else STALL_S)
        return web.Response(body=body, content_type="application/json")

    async def _stream(self, request: web.Request, asked: Asked, turn: Turn) -> web.StreamResponse:
        job = request.headers.get("X-Client-Request-Id", "")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = self.garbles(self.events(asked))
        try:
            for number, event in enumerate(events):
                if self.token_s:
                    await asyncio.sleep(self.token_s)
                if turn == "breaks off" and number == len(events) // 2:
                    return hang_up(request)
                await response.write(event)
                self.written[job] += 1
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
            raise
        self.drawn[job] += 1
        await response.write_eof()
        return response


@asynccontextmanager
async def serving(server: FarServer) -> AsyncIterator[None]:
    """On a port of its own."""
    async with listening([web.route("*", "/{path:.*}", server.serve)]) as server.origin:
        yield


def is_typed(fields: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """The first field that is unknown, or of another type than it must be."""
    return next((n for n, value in fields.items() if n not in known or not isinstance(value, known[n])), None)
