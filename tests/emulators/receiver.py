"""Somebody's webhook receiver: HTTP over a real socket, which remembers every request and answers as its path says.

`/<name>/<status>` answers that status (`?retry=5`: with Retry-After), `/<name>/hang` answers when it is let go, `/<name>/kill` kills the
sender (its process id comes with the request) when all of the request is here and none of the answer is sent.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

SENDER = "X-Sender-Pid"


@dataclass(frozen=True)
class Received:
    """One request; headers by lower-case name."""

    name: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """`got`: all requests in order. `most`: how many of a name were under way at once."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[Received] = []
        self.let_go = asyncio.Event()
        self.under_way: dict[str, int] = {}
        self.most: dict[str, int] = {}

    def of(self, name: str) -> list[Received]:
        return [one for one in self.got if one.name == name]

    async def _take(self, request: web.Request) -> web.Response:
        name, what = request.match_info["name"], request.match_info["what"]
        body = await request.read()
        self.got.append(Received(name, {k.lower(): v for k, v in request.headers.items()}, body))
        self.under_way[name] = self.under_way.get(name, 0) + 1
        self.most[name] = max(self.most.get(name, 0), self.under_way[name])
        try:
            if what == "hang":
                await self.let_go.wait()
            if SENDER in request.headers:
                os.kill(int(request.headers[SENDER]), signal.SIGKILL)
        finally:
            self.under_way[name] -= 1
        status = int(what) if what.isdigit() else 200
        headers = {"Location": f"{self.url}/moved/200"} if 300 <= status < 400 else {}
        if "retry" in request.query:
            headers["Retry-After"] = request.query["retry"]
        return web.Response(status=status, headers=headers, text="not kept" if status != 204 else None)


@asynccontextmanager
async def running() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.add_routes([web.post("/{name}/{what}", receiver._take)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield receiver
    finally:
        receiver.let_go.set()
        await runner.cleanup()
