"""A server that speaks Replicate's HTTP API over a real socket: strict about what it is sent, and unreliable when it is told to be."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import web

from tests.emulators import tasks
from tests.emulators.openai_server import Says, say
from tests.emulators.tasks import Task, TaskServer

FIELDS = {
    "prompt": str, "image": str, "image_input": list, "mask": str, "num_outputs": int, "aspect_ratio": str, "scale": int,
    "output_format": str, "seed": int,
}  # fmt: skip
VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
MODELS = ("acme/painter", "acme/enlarger")
PREFER = re.compile(r"wait(=([1-9]|[1-5][0-9]|60))?")
AFTER = re.compile(r"[1-9][0-9]*[smh]")


class ReplicateServer(TaskServer):
    """A fate may also be an output, as it stands in a prediction, or ("fails", its error).

    `hooks_to`: the origin that a prediction's webhook is posted to in place of its own (which only the world outside knows);
    `hooked`: what that answered.
    """

    def __init__(self, key: str | None) -> None:
        super().__init__(key)
        self.hooks_to = ""
        self.hooked: list[int] = []
        self._telling: set[asyncio.Task[None]] = set()
        self.done: asyncio.Event | None = None
        """Where there is one, a task that hangs succeeds as soon as it is set, and says so."""

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/predictions", self.create),
            web.post("/v1/models/{owner}/{name}/predictions", self.create),
            web.get("/v1/predictions/{id}", self.show),
            web.post("/v1/predictions/{id}/cancel", self.cancel),
        ]

    async def create(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/predictions, or a model's own."""
        return await self.served(request, "create", self._create)

    async def show(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/predictions/{id}."""
        return await self.served(request, "poll", self._show)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/predictions/{id}/cancel."""
        return await self.served(request, "cancel", self._cancel)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        asked = orjson.loads(await request.read())
        wrong = self._wrong(request, asked)
        if wrong is not None:
            return say(wrong)
        task = self.new(request, asked)
        if "webhook" in asked:
            self._telling.add(asyncio.create_task(self._tell(task)))
        if "Prefer" in request.headers and self.lasts == 0:
            return say(Says(201, self._prediction(task, self._status(task))))
        return say(Says(201, self._prediction(task, "starting")))

    def _wrong(self, request: web.Request, asked: dict[str, Any]) -> Says | None:
        owner = request.match_info.get("owner")
        if owner is not None and f"{owner}/{request.match_info['name']}" not in MODELS:
            return Says(404, {"title": "Not found", "detail": "The requested resource could not be found."})
        if owner is None and str(asked.get("version")).rpartition(":")[2] != VERSION:
            return Says(
                422, {"title": "Invalid version or not permitted", "detail": "The specified version does not exist"}
            )
        if set(asked) - {"input", "version", "webhook", "webhook_events_filter"} or (
            owner is not None and "version" in asked
        ):
            return Says(422, {"title": "Input validation failed", "detail": f"Unexpected field: {asked}"})
        for name, value in asked["input"].items():
            if name not in FIELDS or not isinstance(value, FIELDS[name]):
                return Says(422, {"title": "Input validation failed", "detail": f"- input.{name}: unexpected: {asked}"})
        odd = not PREFER.fullmatch(request.headers.get("Prefer", "wait"))
        if odd or not AFTER.fullmatch(request.headers.get("Cancel-After", "1m")):
            return Says(400, {"title": "Bad request", "detail": "a header"})
        return None

    async def _show(self, request: web.Request) -> web.StreamResponse:
        task = self.find(request.match_info["id"])
        if task is None:
            return say(Says(404, {"title": "Not found", "detail": "The requested resource could not be found."}))
        task.polls += 1
        return say(Says(200, self._prediction(task, self._status(task))))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        task = self.find(request.match_info["id"])
        if task is None:
            return say(Says(404, {"title": "Not found", "detail": "The requested resource could not be found."}))
        task.cancelled = True
        return say(Says(200, self._prediction(task, "canceled")))

    async def _tell(self, task: Task) -> None:
        """Its start, and its end."""
        await self.post(task, self._prediction(task, "starting"))
        if self.done is not None:
            await self.done.wait()
            task.fate = "succeeds"
            await self.post(task, self._prediction(task, "succeeded"))

    async def post(self, task: Task, body: Any) -> int:
        """A prediction's webhook; what was answered."""
        path = urlsplit(task.asked["webhook"]).path
        async with aiohttp.ClientSession() as http, http.post(self.hooks_to + path, json=body) as answer:
            self.hooked.append(answer.status)
            return answer.status

    def _status(self, task: Task) -> str:
        if task.cancelled:
            return "canceled"
        if task.fate == "hangs" or task.polls <= self.lasts - 1:
            return "starting" if task.polls == 1 else "processing"
        if task.fate == "fails" or (isinstance(task.fate, tuple) and task.fate[0] == "fails"):
            return "failed"
        return str(task.fate) if task.fate in ("canceled", "aborted") else "succeeded"

    def _prediction(self, task: Task, status: str) -> dict[str, Any]:
        url = f"{self.url}/predictions/{task.id}"
        value: dict[str, Any] = {
            "id": task.id, "model": "acme/painter", "version": task.asked.get("version", "hidden"), "input": task.asked["input"],
            "logs": "", "output": None, "error": None, "status": status, "created_at": "2026-11-21T08:00:00Z",
            "data_removed": False, "urls": {"get": url, "cancel": f"{url}/cancel"},
        }  # fmt: skip
        if status == "processing":
            value["logs"] = f" {30 * task.polls}%|###   | 3/10"
        elif status == "succeeded":
            given = task.fate != "succeeds"
            value["output"] = task.fate if given else [f"{self.origin}/files/{task.id}/0.png"]
            value["metrics"] = {"predict_time": 4.52, "total_time": 5.1}
        elif status == "failed":
            value["error"] = task.fate[1] if isinstance(task.fate, tuple) else "CUDA out of memory"
        return value


@asynccontextmanager
async def running(key: str | None = None) -> AsyncIterator[ReplicateServer]:
    """A server on a port of its own."""
    server = ReplicateServer(key)
    async with tasks.running(server):
        yield server
