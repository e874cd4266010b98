"""One error, rendered for its surface: `/api/v1` has a body of its own, everything else RFC 9457.

Messages never carry constraint names, addresses or other callers' values.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

Details = Mapping[str, list[str]]


class ApiError(Exception):
    """`code` is stable snake_case; `details` maps JSON pointers to messages; `extra` joins the body as it is."""

    def __init__(
        self, status: int, code: str, message: str, *, details: Details | None = None,
        extra: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.extra = extra or {}
        self.headers = dict(headers or {})


def invalid(details: Details, code: str = "invalid_request", message: str = "Invalid input.") -> ApiError:
    """400 with what is wrong at each JSON pointer."""
    return ApiError(400, code, message, details=details)


def not_found(what: str) -> ApiError:
    """404, the same for what is absent and what is somebody else's."""
    return ApiError(404, f"{what}_not_found", f"There is no such {what}.")


def render(error: ApiError, path: str, request_id: str) -> Response:
    """The error's response, in the format of the surface `path` belongs to."""
    if path.startswith("/api/"):
        body: dict[str, Any] = {"error": error.message, "code": error.code}
        if error.details is not None:
            body["details"] = error.details
        media_type = "application/json"
    else:
        body = {"type": "about:blank", "title": error.message, "status": error.status, "code": error.code}
        if error.details is not None:
            body["errors"] = [{"pointer": p, "detail": text} for p, texts in error.details.items() for text in texts]
        media_type = "application/problem+json"
    body |= error.extra
    body["request_id"] = request_id
    return Response(orjson.dumps(body), error.status, headers=error.headers, media_type=media_type)
