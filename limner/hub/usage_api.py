"""`GET /api/v1/usage`: what an app's jobs used and were charged, by day, model, provider, user or kind; as JSON or CSV."""

import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from limner.hub import usage, usage_csv, usage_docs
from limner.hub.api import HubApi, admit_user, answer
from limner.hub.usage import Line, Query
from limner.kit import money
from limner.tenancy import end_users, organizations
from limner.web import parsing
from limner.web.caller import Caller
from limner.web.errors import invalid

DEFAULT_DAYS = 30
MAX_CURSOR = 2000
CSV = "text/csv; charset=utf-8"


class UsageEndpoints:
    """Of the caller's app; of one of its users where the call is for one."""

    def __init__(self, api: HubApi, max_days: int) -> None:
        self._api = api
        self._max_days = max_days

    async def get_usage(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("jobs:read")
        first, last = self._span(request)
        group_by = _group_by(request)
        if "user" in group_by:
            caller.require("users:read")
        query = Query(first, last, group_by, caller.app_id)
        if parsing.choice(request, "format", ("json", "csv")) == "csv":
            return await self._csv(request, caller, query)
        limit = parsing.page_limit(request, default=usage_docs.DEFAULT_ROWS, most=usage_docs.MAX_ROWS)
        lines, query = await self._read(caller, query, limit + 1, _cursor(request, query))
        page = lines[:limit]
        return answer(
            {
                "from": first,
                "to": last,
                "group_by": group_by,
                "usage": [body(query, line) for line in page],
                "next_cursor": _sealed(usage.position(page[-1])) if len(lines) > limit else None,
            }
        )

    async def _csv(self, request: Request, caller: Caller, query: Query) -> Response:
        """Sent as it is read, some thousand lines at a time; what can be refused is refused before the first of them."""
        for name in ("limit", "cursor"):
            if name in request.query_params:
                raise invalid({f"/{name}": ["is for format=json: a CSV has every line"]})
        begun, query = await self._read(caller, query, usage.AT_ONCE, None)

        async def read(_: Query, after: Sequence[str] | None) -> list[Line]:
            return begun if after is None else (await self._read(caller, query, usage.AT_ONCE, after))[0]

        async def lines() -> AsyncIterator[str]:
            yield usage_csv.line(columns(query))
            async for line in usage.every_line(query, read):
                yield usage_csv.line(body(query, line).values())

        name = f"usage-{query.first}-{query.last}.csv"
        headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
        return StreamingResponse(lines(), media_type=CSV, headers=headers)

    async def _read(
        self, caller: Caller, query: Query, limit: int, after: Sequence[str] | None
    ) -> tuple[list[Line], Query]:
        """Lines, and the query as the caller may ask it: with costs or without, and of whom."""
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            await admit_user(tx, caller)
            costs = await organizations.shows_costs(tx)
            query = Query(query.first, query.last, query.group_by, query.app_id, costs=costs)
            if caller.external_id is not None:
                try:
                    user = await end_users.get(tx, caller.app_id, caller.external_id)
                except end_users.UserNotFound:  # nobody yet, who used nothing yet
                    return [], query
                query = usage.of_user(query, user.id)
            return await usage.list_lines(tx, query, limit, after), query

    def _span(self, request: Request) -> tuple[date, date]:
        """The query's `from` and `to`. Raises ApiError 400."""
        today = datetime.fromtimestamp(self._api.db.clock.now(), UTC).date()
        last = parsing.day_parameter(request, "to") or today
        first = parsing.day_parameter(request, "from") or last - timedelta(days=DEFAULT_DAYS - 1)
        if first > last:
            raise invalid({"/from": [f"must not be after {last}, the last day"]})
        if (last - first).days >= self._max_days:
            raise invalid({"/from": [f"must be at most {self._max_days} days back from {last}: ask for less at once"]})
        return first, last


def columns(query: Query) -> list[str]:
    """The names of a line's fields, in their order: what it is grouped by, then the numbers."""
    names = [name for group in query.group_by for name in FIELDS[group]]
    numbers = ["jobs", "credits", "refunded", *(["cost_micro_usd"] if query.costs else [])]
    return [*names, *(["quantity"] if "kind" in query.group_by else []), *numbers]


FIELDS: dict[str, tuple[str, ...]] = {
    "day": ("day",), "app": ("app",), "user": ("user_id",), "model": ("model",), "provider": ("provider",), "kind": ("kind", "unit"),
}  # fmt: skip


def body(query: Query, line: Line) -> dict[str, Any]:
    """A line by its fields' names, in the order of `columns`. Credits are exact decimals."""
    keys = dict(zip(query.columns, line.keys, strict=True))
    known: dict[str, Any] = {
        **keys, "app": line.app, "user_id": line.user_id, "quantity": line.quantity, "jobs": line.jobs,
        "credits": money.exact(line.price_mc), "refunded": money.exact(line.refunded_mc), "cost_micro_usd": line.cost_micro_usd,
    }  # fmt: skip
    if "day" in known:
        known["day"] = known["day"].isoformat()
    return {name: known[name] for name in columns(query)}


def router(api: HubApi, max_days: int) -> APIRouter:
    """The router over these resources. `max_days`: that one call may ask for."""
    routes = APIRouter(prefix="/api/v1", tags=["usage"])
    endpoints = UsageEndpoints(api, max_days)
    routes.add_api_route("/usage", endpoints.get_usage, methods=["GET"], **usage_docs.GET_USAGE)
    return routes


def _group_by(request: Request) -> tuple[str, ...]:
    text = request.query_params.get("group_by", "day")
    names = tuple(text.split(","))
    if not set(names) <= set(usage.COLUMNS) or len(set(names)) < len(names):
        raise invalid(
            {"/group_by": [f"must be some of {', '.join(usage.COLUMNS)}, each once, with commas between them"]}
        )
    return names


def _sealed(position: list[str]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(position)).decode().rstrip("=")


def _cursor(request: Request, query: Query) -> list[str] | None:
    text = request.query_params.get("cursor")
    if not text:
        return None
    try:
        padded = text[:MAX_CURSOR].encode("ascii") + b"=" * (-len(text) % 4)
        found = orjson.loads(base64.b64decode(padded, b"-_", validate=True))
    except (binascii.Error, ValueError):
        found = None
    if not usage.is_position(query, found):
        raise invalid({"/cursor": ["is not a cursor of this list"]})
    return list(found)
