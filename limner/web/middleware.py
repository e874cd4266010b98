"""The outermost layer: a request id, a body limit, errors as answers, one log line and one metric a request."""

import time
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner.db.pools import DatabaseUnavailable
from limner.kit import ids
from limner.telemetry import logs, metrics
from limner.web.errors import ApiError, render

log = logs.get("http")
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


class Edge:
    """ASGI middleware. `limits` maps exact paths to body limits in bytes; `limit` holds for the rest."""

    def __init__(self, app: ASGIApp, limit: int, limits: Mapping[str, int]) -> None:
        self.app = app
        self.limit = limit
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = str(ids.new())
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        error: ApiError | None = None
        try:
            limited = _limited(scope, receive, self.limits.get(scope["path"], self.limit))
            await self.app(scope, limited, send_on)
        except ApiError as raised:
            error = raised
        except HTTPException as raised:
            error = ApiError(raised.status_code, _code(raised.status_code), str(raised.detail), headers=raised.headers)
        except DatabaseUnavailable:
            error = ApiError(
                503, "unavailable", "The service is busy. Nothing was stored; try again.", headers={"retry-after": "2"}
            )
        except Exception:
            log.exception("request.crashed", request=request_id, path=scope["path"])
            error = ApiError(500, "internal_error", "Something went wrong on our side. Nothing was charged.")
        if error is not None and not begun:
            await render(error, scope["path"], request_id)(scope, receive, send_on)
        self._account(scope, status, started, error.code if error else None)

    def _account(self, scope: Scope, status: int, started: float, code: str | None) -> None:
        took = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        metrics.REQUESTS.labels(route, status).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(took)
        if scope["path"] in QUIET:
            return
        state = scope["state"]
        log.info(
            "request",
            request=state["request_id"],
            method=scope["method"],
            route=route,
            status=status,
            latency_ms=round(took * 1000, 2),
            code=code,
            **state.get("log", {}),
        )


def _limited(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Refuse a body longer than `limit`, by its declared length or as it arrives. Raises ApiError 413."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > limit):
            raise _too_large(limit)
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"The body is larger than {limit} bytes.", extra={"limit_bytes": limit},
        headers={"connection": "close"},
    )  # fmt: skip


def _code(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed", 400: "invalid_request"}.get(status, "http_error")
