"""A small API that breaks its own document once at each path: what a fuzzer is for must find all of it, and nothing at `/right`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
LIMIT = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 9}, "required": True}


def _operation(**more: Any) -> dict[str, Any]:
    answers = {
        "200": {"description": "A number.", "content": {"application/json": {"schema": NUMBER}}},
        "400": {"description": "No such limit."},
        "401": {"description": "No key."},
    }
    return {"get": {"responses": answers, "security": [{"Key": []}], "parameters": [LIMIT], **more}}


PATHS = {
    path: _operation()
    for path in ("/right", "/crashing", "/other-status", "/other-type", "/other-body", "/lenient", "/open")
}
PATHS["/other-header"] = _operation(
    responses=PATHS["/right"]["get"]["responses"]
    | {
        "200": {
            "description": "A number.",
            "headers": {"X-Number": {"schema": {"type": "integer"}, "required": True}},
            "content": {"application/json": {"schema": NUMBER}},
        }
    }
)
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "careless", "version": "1"},
    "components": {"securitySchemes": {"Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}},
    "paths": PATHS,
}
KEY = "careless-key"


async def _answer(request: web.Request) -> web.Response:
    limit = request.query.get("limit", "")
    if request.path != "/open" and request.headers.get("X-API-Key") != KEY:
        return web.Response(status=401)
    if request.path != "/lenient" and not (len(limit) == 1 and limit in "123456789"):
        return web.Response(status=400)
    match request.path:
        case "/crashing":
            raise web.HTTPInternalServerError
        case "/other-status":
            return web.json_response({"number": 1}, status=202)
        case "/other-type":
            return web.Response(text="1")
        case "/other-body":
            return web.json_response({"number": "one"})
        case "/other-header":
            return web.json_response({"number": 1}, headers={"X-Number": "one"})
    return web.json_response({"number": 1})


async def _document(_: web.Request) -> web.Response:
    return web.json_response(DOCUMENT)


@asynccontextmanager
async def running() -> AsyncIterator[str]:
    """Its origin."""
    application = web.Application()
    application.add_routes(
        [web.get("/openapi.json", _document), *(web.get(path, _answer, allow_head=False) for path in PATHS)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
