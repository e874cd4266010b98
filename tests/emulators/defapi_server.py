"""A server that speaks as DefAPI was seen to, over a real socket: strict about what it is sent, and unreliable when it is told to be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from tests.emulators import tasks
from tests.emulators.openai_server import Says, say
from tests.emulators.tasks import Task, TaskServer

FIELDS = {"model": str, "prompt": str, "images": list, "aspect_ratio": str}
RATIOS = {"1:1", "16:9", "21:9", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16"}
NOT_FOUND = {"code": 1, "message": "error", "detail": "task not found"}


class DefApiServer(TaskServer):
    """A fate may also be a result, as it stands in a task, or ("fails", its reason). `fresh`: so many first questions about a
    task are answered with "task not found"."""

    def __init__(self, key: str | None) -> None:
        super().__init__(key)
        self.fresh = 0
        self.consumed: Any = "0.04"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/image/gen", self.create),
            web.post("/api/gpt-image/gen", self.create),
            web.get("/api/task/query", self.show),
        ]

    def unauthorized(self, headers: dict[str, str]) -> Says:
        return Says(200, {"code": 401, "message": "Unauthorized", "detail": f"{headers}"})

    async def create(self, request: web.Request) -> web.StreamResponse:
        """POST /api/image/gen, or the one for OpenAI's models."""
        return await self.served(request, "create", self._create)

    async def show(self, request: web.Request) -> web.StreamResponse:
        """GET /api/task/query?task_id=."""
        return await self.served(request, "poll", self._show)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        asked = orjson.loads(await request.read())
        for name, value in asked.items():
            if name not in FIELDS or not isinstance(value, FIELDS[name]):
                return _error(f"invalid parameter {name}: {asked}")
        if (request.path == "/api/gpt-image/gen") != asked["model"].startswith("openai/"):
            return _error("unknown model")
        if asked.get("aspect_ratio", "1:1") not in RATIOS:
            return _error("invalid aspect_ratio")
        return say(Says(200, {"code": 0, "message": "ok", "data": {"task_id": self.new(request, asked).id}}))

    async def _show(self, request: web.Request) -> web.StreamResponse:
        task = self.find(request.query["task_id"])
        if task is None:
            return say(Says(200, NOT_FOUND))
        task.polls += 1
        if task.polls <= self.fresh:
            return say(Says(200, NOT_FOUND))
        return say(Says(200, {"code": 0, "message": "ok", "data": self._task(task)}))

    def _task(self, task: Task) -> dict[str, Any]:
        value: dict[str, Any] = {
            "task_id": task.id, "status": ("pending", "submitted", "in_progress")[min(task.polls, 3) - 1], "result": None,
            "status_reason": {"message": None}, "consumed": "0", "created_at": "2026-11-21T08:00:00Z",
        }  # fmt: skip
        if task.fate == "hangs" or task.polls - self.fresh <= self.lasts - 1:
            return value
        if task.fate == "fails" or isinstance(task.fate, tuple):
            reason = task.fate[1] if isinstance(task.fate, tuple) else "upstream error"
            return value | {"status": "failed", "status_reason": {"message": reason}}
        result = [{"image": f"{self.origin}/files/{task.id}/0.png"}] if task.fate == "succeeds" else task.fate
        return value | {"status": "success", "result": result, "consumed": self.consumed}


def _error(detail: str) -> web.Response:
    return say(Says(200, {"code": 1, "message": "error", "detail": detail}))


@asynccontextmanager
async def running(key: str | None = None) -> AsyncIterator[DefApiServer]:
    """A server on a port of its own."""
    server = DefApiServer(key)
    async with tasks.running(server):
        yield server
