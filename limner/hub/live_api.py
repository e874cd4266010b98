"""`GET /api/v1/jobs/{id}/events`, a job as it happens by server-sent events, and `GET /api/v1/events`, an app's log by pages.

Server-sent events as WHATWG HTML §9.2 has them: an event's `id` is its place in the log, so that a client that comes back with
`Last-Event-ID` misses nothing.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from limner.db.pools import AWAY
from limner.events import log
from limner.events.log import Event
from limner.hub import docs, events, jobs, schemas
from limner.hub.api import HubApi, admit_user, answer, load_job
from limner.hub.live import Follower, LiveBoard, Progress
from limner.web import parsing
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid

RETRY_MS = 2000
"""When a client whose stream ended may come back."""
RECHECK_S = 30.0
"""How long a key or a user that was shut out since may still listen."""
MAX_POSITION = 2**63 - 1
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds between two signs of life, and of a stream's life."""

    heartbeat_s: float
    life_s: float


class LiveEndpoints:
    """One method an endpoint."""

    def __init__(self, api: HubApi, board: LiveBoard, limits: StreamLimits) -> None:
        self._api = api
        self._board = board
        self._limits = limits

    async def follow_job(self, request: Request, job_id: str) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("jobs:read")
        after = _position("/Last-Event-ID", parsing.one_header(request, "Last-Event-ID"))
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            job = await load_job(tx, caller, job_id)
            told = after > 0 and not job.is_open and await log.list_news(tx, {job.id: 0})
        if told and all(event.seq is not None and event.seq <= after for event in told):
            return Response(status_code=204)  # told a client that has it all not to come back
        self._board.admit(caller.app_id)
        return StreamingResponse(
            self._lines(request, caller, job.id, after), media_type="text/event-stream", headers=HEADERS
        )

    async def list_events(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("jobs:read")
        if caller.external_id is not None:
            raise invalid({"/X-User-ID": ["must be left out: the log is the whole app's"]})
        after = _position("/after", request.query_params.get("after"))
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            page = await log.list_of_app(tx, caller.app_id, after=after, limit=parsing.page_limit(request))
        return answer(
            {"events": [events.body(event) for event in page.events], "next_after": page.after, "more": page.more}
        )

    async def _lines(self, request: Request, caller: Caller, job_id: UUID, after: int) -> AsyncIterator[bytes]:
        ends_at, check_at = time.monotonic() + self._limits.life_s, time.monotonic() + RECHECK_S
        yield f"retry: {RETRY_MS}\n\n".encode()
        with self._board.follow(caller.org_id, caller.app_id, job_id, after) as follower:
            while (now := time.monotonic()) < ends_at and not self._board.closing:
                if now > check_at:
                    if not await self._may_listen(request):
                        return
                    check_at = now + RECHECK_S
                news, progress = await follower.wait(self._limits.heartbeat_s)
                if not news and progress is None:
                    yield b": nothing new\n\n"
                for event in news:
                    yield await self._event(caller, event)
                    if event.type in events.TERMINAL:
                        return
                if progress is not None:
                    yield _progress(follower, progress)

    async def _may_listen(self, request: Request) -> bool:
        try:
            caller = await self._api.authenticate.again(request)
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                await admit_user(tx, caller)
        except ApiError:
            return False
        except AWAY:
            return True  # nobody was shut out: it cannot be asked
        return True

    async def _event(self, caller: Caller, event: Event) -> bytes:
        body = events.body(event)
        if event.type in events.TERMINAL:
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                job = await jobs.get(tx, caller.app_id, event.subject_id, caller.external_id)
            body["job"] = schemas.job_body(job, self._api.urls)
        return _line(event.type, body, f"id: {event.seq}\n")


def router(api: HubApi, board: LiveBoard, limits: StreamLimits) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1", tags=["events"])
    endpoints = LiveEndpoints(api, board, limits)
    routes.add_api_route("/jobs/{job_id}/events", endpoints.follow_job, methods=["GET"], **docs.FOLLOW_JOB)
    routes.add_api_route("/events", endpoints.list_events, methods=["GET"], **docs.LIST_EVENTS)
    return routes


def _position(pointer: str, text: str | None) -> int:
    """A place in the log; absent is its beginning. Raises ApiError 400."""
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MAX_POSITION):
        raise invalid({pointer: ["must be the number of an event"]})
    return int(text)


def _progress(follower: Follower, progress: Progress) -> bytes:
    return _line("progress", {"job_id": follower.job_id, "percent": progress.percent, "stage": progress.stage})


def _line(name: str, body: dict[str, Any], position: str = "") -> bytes:
    data = orjson.dumps(body, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC)
    return f"{position}event: {name}\ndata: ".encode() + data + b"\n\n"
