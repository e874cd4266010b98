"""One error, rendered for its surface: `/api/v1` has a body of its own, `/v1` OpenAI's, everything else RFC 9457.

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


OPENAI_TYPES = {402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}
OPENAI_CODES = {
    "missing_api_key": "invalid_api_key",
    "insufficient_tokens": "insufficient_quota",
    "insufficient_organization_tokens": "insufficient_quota",
    "rate_limited": "rate_limit_exceeded",
    "unsupported_input": "unsupported_parameter",
}


def render(error: ApiError, path: str, request_id: str) -> Response:
    """The error's response, in the format of the surface `path` belongs to."""
    if path.startswith("/v1/"):
        return _as_openai(error, request_id)
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


def _as_openai(error: ApiError, request_id: str) -> Response:
    """OpenAI's error object: what its clients raise their exceptions from."""
    pointers = [pointer for pointer in error.details or {} if pointer]
    kind = OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    words = "; ".join(
        f"{pointer[1:] or 'body'} {text}" for pointer, texts in (error.details or {}).items() for text in texts
    )
    told = {
        "message": f"{error.message} {words}".strip(),
        "type": kind,
        "param": pointers[0][1:].partition("/")[0] if pointers else None,
        "code": OPENAI_CODES.get(error.code, error.code),
    }
    body = {"error": told | dict(error.extra), "request_id": request_id}
    return Response(
        orjson.dumps(body), error.status, headers=openai_limits(error.headers), media_type="application/json"
    )


def openai_limits(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers with what is left of the tightest limit by the names that OpenAI's clients know."""
    told = dict(headers)
    if "x-ratelimit-limit" in told:
        told["x-ratelimit-limit-requests"] = told.pop("x-ratelimit-limit")
        told["x-ratelimit-remaining-requests"] = told.pop("x-ratelimit-remaining")
        told["x-ratelimit-reset-requests"] = told.pop("x-ratelimit-reset") + "s"
    return told
