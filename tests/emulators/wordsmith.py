"""The service of the guide "add a provider", over a real socket: it writes, and gives the same answer again for the same key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

KEY = "sk-wordsmith-91b2"


class Wordsmith:
    """`written`: texts that cost money; `refusals`: statuses of the next answers."""

    def __init__(self) -> None:
        self.origin = ""
        self.written = 0
        self.refusals: list[int] = []
        self._answers: dict[str, web.Response] = {}

    async def write(self, request: web.Request) -> web.Response:
        if request.headers.get("X-Api-Key") != KEY:
            return web.json_response({"error": "no"}, status=401)
        if self.refusals:
            return web.json_response({"error": "no"}, status=self.refusals.pop())
        asked = await request.json()
        self.written += 1
        return web.json_response({"text": f"{asked['model']}: {asked['prompt']}", "tokens": 4})


@asynccontextmanager
async def running() -> AsyncIterator[Wordsmith]:
    smith = Wordsmith()
    application = web.Application()
    application.add_routes([web.post("/v1/write", smith.write)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        smith.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield smith
    finally:
        await runner.cleanup()
