"""A provider somewhere else: HTTP over a real socket, paid for each picture it draws. It keeps count of what it was asked.

At `/keyed` it knows an Idempotency-Key and gives the first answer again (class A); at `/plain` it draws, and bills, whatever
comes (class C).
"""

import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.hub.doubles import png

KILL = "X-Kill-Me"
"""The process id of a caller that is to die when all of its request is here and none of the answer is sent."""


class Provider:
    """`keys`: of all requests, in order; `drawn`: pictures that cost money. Both by job."""

    def __init__(self) -> None:
        self.origin = ""
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.drawn: dict[str, int] = defaultdict(int)
        self._answers: dict[str, bytes] = {}

    async def _draw(self, request: web.Request) -> web.Response:
        job, key = (await request.json())["job"], request.headers["Idempotency-Key"]
        self.keys[job].append(key)
        picture = self._answers.get(key) if request.path == "/keyed" else None
        if picture is None:
            self.drawn[job] += 1
            picture = png(8)
            self._answers[key] = picture
        if KILL in request.headers:
            os.kill(int(request.headers[KILL]), signal.SIGKILL)
        return web.Response(body=picture, content_type="image/png")


@asynccontextmanager
async def running() -> AsyncIterator[Provider]:
    provider = Provider()
    application = web.Application()
    application.add_routes([web.post(path, provider._draw) for path in ("/keyed", "/plain")])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        provider.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield provider
    finally:
        await runner.cleanup()
