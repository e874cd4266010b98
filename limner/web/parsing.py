"""Bodies, idempotency keys and pages, parsed strictly: what cannot be right answers 400 with a pointer."""

import re
from collections.abc import Collection
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import orjson
from starlette.requests import ClientDisconnect, Request

from limner.kit import ids
from limner.web.bodies import SMALL_BYTES, BodyBounds, Values
from limner.web.errors import ApiError, invalid

KEY = re.compile(r"[\x21-\x7e]{1,255}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
MAX_PAGE = 100
NO_MOMENT = "must be a moment with its offset (RFC 3339), such as 2026-12-31T23:59:59Z"
FLAGS = {"0": False, "false": False, "1": True, "true": True}


async def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object (RFC 8259, UTF-8). Raises ApiError 400, 408, 413, 415, 429 or 503."""
    return (await json_body(request))[1]


async def json_body(request: Request, times: int = 1) -> tuple[bytes, dict[str, Any]]:
    """The body as it came, and the JSON object it is; it may hold `times` as many values as others. Raises as `json_object`."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "Send application/json.")
    body = await _whole(request, times)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid({"": [f"not valid JSON: {error}"]}, "invalid_json", "The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise invalid({"": ["must be a JSON object"]})
    if b"\\" in body and b"\\u0000" in body and _holds_nul(value):
        raise invalid({"": ["text must not contain U+0000"]})
    return body, value


async def _whole(request: Request, times: int) -> bytes:
    """All of it; a long one is looked at piece by piece, so that what would be long to parse never is."""
    state = request.scope["state"]
    bounds: BodyBounds = state["body_bounds"]  # the edge's
    pieces: list[bytes] = []
    size = 0
    values: Values | None = None
    more = True
    while more:
        message = await request.receive()  # without the generators of `request.stream`: each call passes here
        if message["type"] != "http.request":
            raise ClientDisconnect
        piece, more = message.get("body", b""), message.get("more_body", False)
        pieces.append(piece)
        size += len(piece)
        bounds.memory.hold(state, size)
        if values is not None:
            values.see(piece)
        elif size > SMALL_BYTES:
            values = Values(bounds.values * times)
            values.see(b"".join(pieces))
    return b"".join(pieces)


def _holds_nul(value: Any) -> bool:
    """A loop, not a recursion: JSON may nest deeper than Python's stack."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if "\0" in item:
                return True
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return False


def one_header(request: Request, name: str) -> str | None:
    """A header that may come once: twice, a proxy and limner could each believe another one. Raises ApiError 400."""
    wanted = name.lower().encode()
    values = [value for sent, value in request.scope["headers"] if sent == wanted]  # ASGI: names come in lower case
    if len(values) > 1:
        raise invalid({f"/{name}": ["was sent more than once"]})
    return values[0].decode("latin-1") if values else None


def idempotency_key(request: Request, body_key: Any) -> str | None:
    """The key of the header or the body field, byte-exact; both given and different → 400.

    1 to 255 visible ASCII characters, neither trimmed nor folded.
    """
    header_key = one_header(request, "Idempotency-Key")
    if header_key is not None and body_key is not None and header_key != body_key:
        raise invalid({"/idempotency_key": ["differs from the Idempotency-Key header"]})
    key = header_key if header_key is not None else body_key
    if key is not None and (not isinstance(key, str) or not KEY.fullmatch(key)):
        raise invalid({"/idempotency_key": ["must be 1 to 255 visible ASCII characters"]})
    return key


def traceparent(request: Request) -> str | None:
    """The caller's W3C trace context, or None when absent or malformed."""
    value = request.headers.get("traceparent")
    return value if value is not None and TRACEPARENT.fullmatch(value) else None


def moment(text: str) -> datetime | None:
    """RFC 3339 with an offset, to the microsecond; None for anything else."""
    if not MOMENT.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def moment_parameter(request: Request, name: str) -> datetime | None:
    """A moment in the query. Raises ApiError 400."""
    text = request.query_params.get(name)
    if text is None:
        return None
    found = moment(text)
    if found is None:
        raise invalid({f"/{name}": [NO_MOMENT]})
    return found


def day_parameter(request: Request, name: str) -> date | None:
    """A day in the query (RFC 3339 full-date), from 1970 on. Raises ApiError 400."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        found = date.fromisoformat(text) if DAY.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None or found.year < 1970:
        raise invalid({f"/{name}": ["must be a day, such as 2026-12-31"]})
    return found


def moment_at(pointer: str, text: str) -> datetime:
    """A moment in the body, in UTC. Raises ApiError 400."""
    found = moment(text)
    if found is None:
        raise invalid({pointer: [NO_MOMENT]})
    return found


def flag(request: Request, name: str) -> bool:
    """A parameter that is on or off: 1, true, 0, false; absent is off. Raises ApiError 400."""
    if not request.scope["query_string"]:
        return False
    text = request.query_params.get(name, "0")
    if text not in FLAGS:
        raise invalid({f"/{name}": ["must be 1 or 0"]})
    return FLAGS[text]


def choice(request: Request, name: str, values: Collection[str]) -> str | None:
    """A query parameter that is one of some words, or absent. Raises ApiError 400."""
    value = request.query_params.get(name)
    if value is not None and value not in values:
        raise invalid({f"/{name}": [f"must be one of {', '.join(values)}"]})
    return value


def page_limit(request: Request, default: int = 20, most: int = MAX_PAGE) -> int:
    """The `limit` parameter, 1 to `most`."""
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        raise invalid({"/limit": [f"must be a whole number from 1 to {most}"]})
    return int(text)


def page_cursor(request: Request) -> UUID | None:
    """The `cursor` parameter: the id a page ended with; absent or empty for the first page."""
    text = request.query_params.get("cursor")
    if not text:
        return None
    cursor = ids.parse(text)
    if cursor is None:
        raise invalid({"/cursor": ["is not a cursor of this list"]})
    return cursor
