"""`POST /hooks/{adapter}/{token}`: where providers say that there is news of a task. For providers, so no part of the API's document."""

import re

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.hub.hooks import PREFIX, Hooks
from limner.web.errors import ApiError

TASK_ID = re.compile(r"[A-Za-z0-9]{1,100}", re.ASCII)
ADAPTERS = frozenset({"replicate"})
"""Whose providers send hooks."""


def router(db: Database, hooks: Hooks) -> APIRouter:
    """Where this installation has no https address of its own, no hook was ever given out, and every token is unknown."""
    routes = APIRouter()

    @routes.post(PREFIX + "{adapter}/{token}", include_in_schema=False)
    async def hear(request: Request, adapter: str, token: str) -> Response:
        named = hooks.read(token) if adapter in ADAPTERS else None
        if named is None:
            raise ApiError(404, "not_found", "There is no such hook.")
        task_id = _task_id(await request.body())
        if task_id is None:
            raise ApiError(400, "invalid_request", "The body is no prediction: it names no id.")
        await hooks.heard(db, named, task_id)
        return Response(status_code=204)

    return routes


def _task_id(body: bytes) -> str | None:
    try:
        value = orjson.loads(body)
    except ValueError:
        return None
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and TASK_ID.fullmatch(found) else None
