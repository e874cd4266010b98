"""Is it alive, is it ready, and what do the numbers say: /api/health, /healthz, /readyz, /metrics."""

import asyncio
import contextlib
from typing import Literal

import orjson
import psycopg
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

from limner.db.pools import Database, DatabaseUnavailable
from limner.tasks import chores
from limner.telemetry import metrics

READY_WITHIN_S = 0.2


class Health(BaseModel):
    status: Literal["ok", "unavailable"]
    database: bool
    version: str


def router(db: Database, version: str) -> APIRouter:
    """The router over one database."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/healthz", summary="The process answers", response_class=PlainTextResponse)
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @routes.get(
        "/readyz", summary="The process can serve: its database answers within 200 ms",
        response_class=PlainTextResponse, responses={503: {"description": "It does not.", "content": {"text/plain": {}}}},
    )  # fmt: skip
    async def readyz() -> Response:
        ready = await _database_answers(db)
        return PlainTextResponse("ready\n" if ready else "the database does not answer\n", 200 if ready else 503)

    @routes.get(
        "/api/health", summary="Health in JSON", response_model=Health,
        responses={503: {"model": Health, "description": "The database does not answer."}},
    )  # fmt: skip
    async def health() -> Response:
        ready = await _database_answers(db)
        body = {"status": "ok" if ready else "unavailable", "database": ready, "version": version}
        return Response(orjson.dumps(body), 200 if ready else 503, media_type="application/json")

    @routes.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        with contextlib.suppress(DatabaseUnavailable, psycopg.Error):  # the process's own numbers are worth having
            await _measure(db)
        return Response(await asyncio.to_thread(metrics.render), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


async def _database_answers(db: Database) -> bool:
    try:
        async with asyncio.timeout(READY_WITHIN_S), db.statement("limner_api") as conn:
            await conn.execute("SELECT 1")
    except (TimeoutError, DatabaseUnavailable, psycopg.Error):
        return False
    return True


async def _measure(db: Database) -> None:
    """What only the database knows: the queue now, and what the last check of the books found."""
    async with db.system_tx("limner_api", "a few numbers of everybody's queues, no tenant's") as tx:
        queue = await tx.get("SELECT * FROM limner.queue_facts()")
        webhooks = await tx.get("SELECT * FROM limner.webhook_facts()")
        providers = await tx.all("SELECT * FROM limner.provider_states()")
    metrics.QUEUE_DEPTH.set(queue["depth"])
    metrics.QUEUE_RUNNING.set(queue["running"])
    metrics.QUEUE_DEFERRED.set(queue["deferred"])
    metrics.QUEUE_OVERDUE.set(queue["overdue"])
    metrics.QUEUE_OLDEST.set(queue["oldest_s"])
    metrics.WEBHOOK_DUE.set(webhooks["due_s"])
    metrics.WEBHOOKS_FAILING.set(webhooks["failing"])
    for row in providers:
        metrics.PROVIDER_STATE.labels(row["name"]).set(metrics.PROVIDER_STATES.index(row["state"]))
    books = (await chores.last_results(db)).get("check_books", {})
    if "violations" in books:
        metrics.VIOLATIONS.set(books["violations"])
        metrics.OPEN_HOLDS.set(books["open_holds"])
        metrics.HELD_CREDITS.set(books["held_mc"] / 1000)
