"""The API's composition root: settings → resources → routers, one a line."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import fastapi_offline
import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from limner.db.pools import Address, Database
from limner.egress import destinations, doors
from limner.egress.destinations import Destinations
from limner.egress.own_keys import OwnKeys
from limner.events import endpoints
from limner.hub import api as hub_api
from limner.hub import (
    batches_api,
    checks,
    checks_api,
    executor,
    gates,
    hooks_api,
    inputs,
    live_api,
    openai_api,
    provider_keys_api,
    settings_api,
    uploads_api,
    usage_api,
    users_api,
    webhooks_api,
)
from limner.hub.batch_submission import BatchSubmitter
from limner.hub.calls import Calls, Reading
from limner.hub.chat import Answering
from limner.hub.hooks import Hooks
from limner.hub.imports import Imports
from limner.hub.limits import SubmitLimits
from limner.hub.live import LiveBoard
from limner.hub.live_api import StreamLimits
from limner.hub.openai_answers import Desk
from limner.hub.openai_audio import AudioApi
from limner.hub.openai_images import ImagesApi
from limner.hub.progress import News
from limner.hub.providers import registry
from limner.hub.providers.kinds import Tools
from limner.hub.remembered import ModelCache
from limner.hub.submission import Submitter
from limner.hub.waiting import WaitingRoom
from limner.kit.cpu import CpuPool
from limner.kit.crypto import RootKey, Sealer
from limner.media import api as media_api
from limner.media import presigning, receiving
from limner.media.audio import AudioLimits, Recordings
from limner.media.processing import Processor
from limner.media.sandbox import Sandbox
from limner.media.sniffing import ImageLimits
from limner.media.store import ObjectStore
from limner.media.tickets import TokenTickets
from limner.media.uploads import Quota
from limner.media.urls import MediaUrls
from limner.media.variants import Variants
from limner.settings import MIB, Settings
from limner.tenancy.authentication import KeyAuthenticator
from limner.web import health, rates
from limner.web.bodies import BodyBounds, BodyMemory
from limner.web.middleware import Edge, Endpoint, hand_on
from limner.web.reference import Application

ROLES = ("limner_api", "limner_worker", "limner_dispatch")
SMALLER = {"limner_worker": 6, "limner_dispatch": 2}
"""Connections that settle calls, a batch in each, and that renew their leases."""
API_CPU_PROCESSES = 1
VERSION = "0.1.0"
DESCRIPTION = """Words and pictures from a prompt, with the money right.

Send your key as `X-API-Key` and the user you act for as `X-User-ID`. A job is accepted with its price on hold,
worked on in the background, and charged for what it delivered, exactly once. Every job has a receipt."""


def build(settings: Settings, root: RootKey, address: Address) -> FastAPI:
    """The application; its lifespan opens and closes what it uses."""
    db = Database(address, root, ROLES, size=settings.database_pool_size, smaller=SMALLER)
    pool = CpuPool(API_CPU_PROCESSES, settings.cpu_memory_bytes, settings.cpu_time_limit_s)
    store = ObjectStore(settings.store_url, settings.home)
    urls = MediaUrls(root, db.clock, settings.base_url, settings.output_url_s)
    board = LiveBoard(db, settings.max_streams, settings.max_streams_per_app)
    allowed = destinations.of(settings)
    submitter = _submitter(settings, db, pool, store, allowed)
    authenticate = KeyAuthenticator(db, settings.key_cache_s, rates.KeyLimit("reads", settings.reads_per_min))
    waiting = WaitingRoom(board, settings.max_waiting, settings.longest_wait_s)
    reading = Reading(authenticate)
    hub = hub_api.HubApi(db, reading, submitter, urls, waiting)
    tokens = TokenTickets(root, settings.base_url)
    brought = _uploads(settings, hub, store, tokens, pool)
    door = doors.fixed(settings, root)
    openai = _openai(
        settings, hub, authenticate, store, pool, _answerers(Tools(door, pool, db.clock, doors.untrusted(settings)))
    )
    reading.calls = openai.desk.calls

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await db.open()
        background = [
            asyncio.create_task(work)
            for work in (submitter.waker.run(), db.keep_time(), board.run(), openai.desk.calls.keep())
        ]
        yield
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await door.aclose()
        await pool.aclose()
        await db.close()

    app = Application(
        title="limner", version=VERSION, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url=None, redirect_slashes=False, exception_handlers={HTTPException: hand_on},
        generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    pictures = ImagesApi(db, authenticate, submitter, board, store, urls, settings.max_image_bytes)
    recordings = AudioApi(db, authenticate, submitter, board, settings.max_audio_bytes)
    media = media_api.MediaEndpoint(store, urls, Variants(store, pool, settings.home / "locks"))
    for router in (
        hub_api.router(hub),
        live_api.router(hub, board, StreamLimits(settings.stream_heartbeat_s, settings.stream_life_s)),
        batches_api.router(_batches(settings, hub)),
        users_api.router(hub),
        usage_api.router(hub, settings.usage_max_days),
        checks_api.router(hub, _checker(settings, pool), rates.KeyLimit("checks", settings.checks_per_min)),
        webhooks_api.router(_webhooks(settings, root, hub, allowed)),
        provider_keys_api.router(provider_keys_api.ProviderKeysApi(db, authenticate, OwnKeys(root))),
        settings_api.router(settings_api.SettingsApi(db, authenticate)),
        uploads_api.router(brought),
        openai_api.router(openai, pictures, recordings),
        receiving.router(db, store, tokens),
        hooks_api.router(db, Hooks(root, settings.public_url)),
        media_api.router(media),
        health.router(db, VERSION),
    ):
        app.include_router(router)
    _serve_docs(app)
    _edge(app, settings, {
        "POST /api/v1/generate": hub_api.JobEndpoints(hub).generate,
        "POST /v1/chat/completions": openai_api.ChatEndpoints(openai).chat,
        f"GET {media_api.PREFIX}": media,
    })  # fmt: skip
    app.state.close_streams = board.close
    return app


def _edge(app: Application, settings: Settings, direct: dict[str, Endpoint]) -> None:
    """What stands before every endpoint; `direct` are answered without a router."""
    bounds = BodyBounds(settings.body_within_s, settings.max_body_values, BodyMemory(settings.max_bodies_bytes))
    limits = _body_limits(settings)
    app.add_middleware(Edge, limit=settings.max_body_bytes, limits=limits, direct={}, bounds=bounds)
    app.shortcut = Edge(app, settings.max_body_bytes, limits, direct, bounds)


def _webhooks(
    settings: Settings, root: RootKey, hub: hub_api.HubApi, allowed: Destinations
) -> webhooks_api.WebhooksApi:
    return webhooks_api.WebhooksApi(
        hub.db, hub.authenticate, Sealer(root, endpoints.PURPOSE), allowed, settings.webhooks_per_app,
        settings.webhook_secret_overlap_s, settings.keep_deliveries_days,
    )  # fmt: skip


def _checker(settings: Settings, pool: CpuPool) -> checks.Checker:
    limits = checks.CheckLimits(settings.check_max_chars, settings.check_backlog, settings.check_time_limit_s)
    return checks.Checker(pool, limits)


def _body_limits(settings: Settings) -> dict[str, int]:
    """In bytes, by path; what is not named has the smaller limit of all other bodies."""
    return {
        "/api/v1/generate": settings.max_generate_body_bytes,
        "/api/v1/batches": settings.max_batch_body_bytes,
        "/v1/": settings.max_generate_body_bytes,
        # every character may come as two escapes of six bytes
        "/api/v1/check": max(settings.max_body_bytes, 12 * settings.check_max_chars + MIB // 4),
        receiving.PREFIX: max(settings.max_image_bytes, settings.max_audio_bytes),
    }


def _batches(settings: Settings, hub: hub_api.HubApi) -> batches_api.BatchesApi:
    """The uploads of one batch may have as many bytes as one request of a single job."""
    most_bytes = settings.max_generate_body_bytes
    return batches_api.BatchesApi(hub, BatchSubmitter(hub.db, hub.submitter, settings.max_batch_items, most_bytes))


def _submitter(settings: Settings, db: Database, pool: CpuPool, store: ObjectStore, allowed: Destinations) -> Submitter:
    recordings = Recordings(pool, AudioLimits.of(settings))
    images = inputs.ImageInputs(db, store, pool, allowed, ImageLimits.of(settings), recordings)
    limits = SubmitLimits(
        settings.max_runs, settings.submit_backlog, settings.user_jobs_per_min, settings.app_jobs_per_min,
        settings.max_run_at_s,
    )  # fmt: skip
    return Submitter(db, ModelCache(), images, allowed, limits)


def _openai(
    settings: Settings, hub: hub_api.HubApi, authenticate: KeyAuthenticator, store: ObjectStore, pool: CpuPool,
    providers: dict[str, Answering],
) -> openai_api.OpenAIApi:  # fmt: skip
    """Calls that this process answers itself, settled as a worker settles its runs."""
    waker = hub.submitter.waker
    resources = executor.resources(
        hub.db, {}, store, pool, settings.max_runs, settings.retry_backoff_s,
        Imports(doors.untrusted(settings), pool, ImageLimits.of(settings), Recordings(pool, AudioLimits.of(settings))),
        News(lambda: waker.wake(event=True)),
        breaker=gates.breaker(settings),
    )  # fmt: skip
    calls = Calls(hub.db, hub.submitter.intake, resources, settings.lease_s, settings.heartbeat_s)
    return openai_api.OpenAIApi(
        hub.db, authenticate, hub.submitter, Desk(calls, providers, settings.stream_heartbeat_s), resources.routes
    )


def _answerers(tools: Tools) -> dict[str, Answering]:
    """Who answers calls of /v1, by the name of the adapter."""
    return {name: kind.answering(tools) for name, kind in registry.all_kinds().items() if kind.answering is not None}


def _uploads(
    settings: Settings, hub: hub_api.HubApi, store: ObjectStore, tokens: TokenTickets, pool: CpuPool
) -> uploads_api.UploadsApi:
    """A bucket takes bytes by itself; else they come here, by limner's own tokens."""
    bucket = presigning.find_bucket(settings.store_url, os.environ)
    tickets = presigning.BucketTickets(*bucket, hub.db.clock) if bucket else tokens
    quota = Quota(settings.upload_quota_bytes, settings.upload_quota_files)
    recordings = Recordings(pool, AudioLimits.of(settings))
    processor = Processor(hub.db, "limner_api", store, Sandbox(), ImageLimits.of(settings), quota, recordings)
    largest = {"image": settings.max_image_bytes, "audio": settings.max_audio_bytes}
    return uploads_api.UploadsApi(
        hub.db, hub.authenticate, store, processor, tickets, hub.urls, quota, largest, hub.submitter
    )


def _serve_docs(app: FastAPI) -> None:
    """The document, written once (anybody may ask, and writing it takes milliseconds), and the reference at /docs, from
    files of this machine: it works without a network.
    """
    written: list[bytes] = []

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(_: Request) -> Response:
        if not written:
            written.append(orjson.dumps(app.openapi()))
        return Response(written[0], media_type="application/json")

    folder = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/docs/static", StaticFiles(directory=folder), name="docs-static")

    @app.get("/docs", include_in_schema=False)
    async def docs(_: Request) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="limner API",
            swagger_js_url="/docs/static/swagger-ui-bundle.js",
            swagger_css_url="/docs/static/swagger-ui.css",
            swagger_favicon_url="/docs/static/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},
        )
