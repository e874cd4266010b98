"""The outermost layer: a request id, a body limit, errors as answers, one log line and one metric a request."""

import time
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner.db.pools import AWAY
from limner.kit import ids
from limner.telemetry import logs, metrics
from limner.web import bodies
from limner.web.errors import ApiError, invalid, render

log = logs.get("http")
METHOD_NOT_ALLOWED = 405
TOO_LARGE = 413
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
MAX_PARAMETERS = 100
"""In a URL, of which ten thousand would take longer to read than any request takes. No route knows more than ten."""
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)

Endpoint = Callable[[Request], Awaitable[Response]]


class Edge:
    """ASGI middleware. `limits` maps paths to body limits in bytes: exact ones, and prefixes that end with a slash; `limit` holds for
    the rest, `bounds` for all; every edge of a process has the same.
    `direct` maps "METHOD /path" to the endpoint that answers it without the router in between: a quarter of the
    time of the busiest call (bench/submit.py). A path that ends with a slash stands for all below it that no longer one names.
    """

    def __init__(
        self, app: ASGIApp, limit: int, limits: Mapping[str, int], direct: Mapping[str, Endpoint],
        bounds: bodies.BodyBounds,
    ) -> None:  # fmt: skip
        self.app = app
        self.limit = limit
        self.limits = limits
        self._prefixes = tuple(path for path in limits if path.endswith("/"))
        self.direct = direct
        self._direct_routes = {key: SimpleNamespace(path=key.partition(" ")[2]) for key in direct}
        self._direct_prefixes = tuple(path for path in direct if path.endswith("/"))
        self.bounds = bounds
        self._access = logs.FrequentLine("http", "request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = ids.text()
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "body_bounds": self.bounds}
        status = 500
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                headers = message["headers"]
                present = {name for name, _ in headers}
                message["headers"] = [
                    *headers, (b"x-request-id", request_id.encode()),
                    *(header for header in SECURITY_HEADERS if header[0] not in present),
                ]  # fmt: skip
            await send(message)

        error: ApiError | None = None
        limited: bodies.Arriving | None = None
        try:
            limited = self._limited(scope, receive)
            route = self.route(scope)
            if route is None:
                await self.app(scope, limited, send_on)
            else:
                scope["route"] = self._direct_routes[route]
                response = await self.direct[route](Request(scope, limited))
                await response(scope, limited, send_on)
        except ApiError as raised:
            error = raised
        except HTTPException as raised:
            error = ApiError(raised.status_code, _code(raised.status_code), str(raised.detail), headers=raised.headers)
        except ClientDisconnect:
            error = ApiError(400, "client_disconnected", "The request ended before its body did.")
        except AWAY:
            error = ApiError(
                503, "unavailable", "The service is busy; try again. With an idempotency key nothing is done twice.",
                headers={"retry-after": "2"},
            )  # fmt: skip
        except Exception:
            log.exception("request.crashed", request=request_id, path=scope["path"])
            error = ApiError(500, "internal_error", "Something went wrong on our side.")
        finally:
            self.bounds.memory.release(state)
        if error is not None and not begun:
            if error.status == TOO_LARGE and not (limited and limited.whole) and not _waits(scope):
                await bodies.run_out(receive)
            await render(error, scope["path"], request_id)(scope, receive, send_on)
        self._account(scope, status, started, error.code if error else None)

    def route(self, scope: Scope) -> str | None:
        """The key in `direct` of what answers this request without the router, if anything does."""
        path = f"{scope['method']} {scope['path']}"
        if path in self.direct:
            return path
        if path.startswith(self._direct_prefixes):
            return next(prefix for prefix in self._direct_prefixes if path.startswith(prefix))
        return None

    def _limit_of(self, path: str) -> int:
        if path.startswith(self._prefixes):
            return next(self.limits[prefix] for prefix in self._prefixes if path.startswith(prefix))
        return self.limits.get(path, self.limit)

    def _limited(self, scope: Scope, receive: Receive) -> bodies.Arriving:
        """Bounds on the body, by its declared length and as it arrives. Raises ApiError 400, 404, 413."""
        if "\n" in scope["path"]:  # a route's `$` would match before it: two paths for one object
            raise ApiError(404, "not_found", "Not Found")
        if scope["query_string"].count(b"&") >= MAX_PARAMETERS:
            raise invalid({"": [f"more than {MAX_PARAMETERS} parameters in the URL"]})
        limit = self._limit_of(scope["path"])
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > limit):
                raise bodies.too_large(limit)
        return bodies.Arriving(receive, scope["state"], limit, self.bounds.within_s)

    def _account(self, scope: Scope, status: int, started: float, code: str | None) -> None:
        took = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        metrics.of(metrics.REQUESTS, route, status).inc()
        metrics.of(metrics.REQUEST_SECONDS, route).observe(took)
        if scope["path"] in QUIET:
            return
        state = scope["state"]
        self._access.write(
            {
                "request": state["request_id"],
                "method": scope["method"],
                "route": route,
                "status": status,
                "latency_ms": round(took * 1000, 2),
                "code": code,
                **state.get("log", {}),
            }
        )


async def hand_on(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own errors: they go on to the Edge, which knows the surface's format.

    Of a path that several routes serve, each with a method of its own, Starlette names the first one's method only.
    """
    if isinstance(error, HTTPException) and error.status_code == METHOD_NOT_ALLOWED:
        allowed = [method for method in METHODS if _serves(request, method)]
        error.headers = {"allow": ", ".join(allowed)}
    raise error


def _waits(scope: Scope) -> bool:
    """Whether the client sends its body only when it is told to (RFC 9110, 10.1.1)."""
    return any(name == b"expect" for name, _ in scope["headers"])


def _serves(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)


def _code(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed", 400: "invalid_request"}.get(status, "http_error")
