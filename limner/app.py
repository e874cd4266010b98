"""The API's composition root: settings → resources → routers, one a line."""

import asyncio
import contextlib
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
from limner.hub import api as hub_api
from limner.hub import catalog, inputs, users_api
from limner.hub.limits import SubmitLimits
from limner.hub.submission import Submitter
from limner.kit.cpu import CpuPool
from limner.kit.crypto import RootKey
from limner.media import api as media_api
from limner.media.store import ObjectStore
from limner.media.urls import MediaUrls
from limner.settings import Settings
from limner.tenancy.authentication import KeyAuthenticator
from limner.web import health, rates
from limner.web.bodies import BodyMemory
from limner.web.middleware import Edge, Shortcut, hand_on
from limner.web.reference import Application

ROLES = ("limner_api",)
API_CPU_PROCESSES = 1
VERSION = "0.1.0"
DESCRIPTION = """Words and pictures from a prompt, with the money right.

Send your key as `X-API-Key` and the user you act for as `X-User-ID`. A job is accepted with its price on hold,
worked on in the background, and charged for what it delivered, exactly once. Every job has a receipt."""


def build(settings: Settings, root: RootKey, address: Address) -> FastAPI:
    """The application; its lifespan opens and closes what it uses."""
    db = Database(address, root, ROLES, size=settings.database_pool_size)
    pool = CpuPool(API_CPU_PROCESSES, settings.cpu_memory_bytes, settings.cpu_time_limit_s)
    store = ObjectStore(settings.store_url, settings.home)
    urls = MediaUrls(root, db.clock, settings.base_url, settings.output_url_s)
    images = inputs.ImageLimits(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side)
    submitter = Submitter(
        db,
        catalog.ModelCache(),
        pool,
        SubmitLimits(
            images,
            settings.max_runs,
            settings.submit_backlog,
            settings.user_jobs_per_min,
            settings.app_jobs_per_min,
            settings.max_run_at_s,
        ),
    )
    authenticate = KeyAuthenticator(db, settings.key_cache_s, rates.ReadLimit(settings.reads_per_min))
    hub = hub_api.HubApi(db, authenticate, submitter, urls)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await db.open()
        background = [asyncio.create_task(submitter.waker.run()), asyncio.create_task(db.keep_time())]
        yield
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await pool.aclose()
        await db.close()

    app = Application(
        title="limner", version=VERSION, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url=None, redirect_slashes=False, exception_handlers={HTTPException: hand_on},
        generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    app.include_router(hub_api.router(hub))
    app.include_router(users_api.router(hub))
    app.include_router(media_api.router(store, urls))
    app.include_router(health.router(db, VERSION))
    _serve_docs(app)
    limits = {"/api/v1/generate": settings.max_generate_body_bytes}
    most, within_s, memory = settings.max_body_bytes, settings.body_within_s, BodyMemory(settings.max_bodies_bytes)
    app.add_middleware(Edge, limit=most, limits=limits, direct={}, body_within_s=within_s, memory=memory)
    direct = {"POST /api/v1/generate": hub_api.JobEndpoints(hub).generate}
    edge = Edge(app, most, limits, direct, within_s, memory)
    app.middleware_stack = Shortcut(app.build_middleware_stack(), edge)
    return app


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
