"""`GET /media/<key>`: a stored object by signed URL, with headers that let a browser show it and do nothing else.

An uploaded picture also comes smaller: `&w=960&f=webp`. The signature is the picture's; which copies there are is fixed.
"""

import re
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from limner.media import variants as presets
from limner.media.store import ObjectMissing, ObjectStore, StoreUnavailable
from limner.media.urls import YEAR_S, MediaUrls
from limner.media.variants import Preset, VariantFailed, Variants, VariantsBusy
from limner.web.errors import ApiError

KEY = re.compile(r"(?:[A-Za-z0-9_-]+/)+[A-Za-z0-9_-]+\.(png|jpg|webp)")
"""Of the keys limner writes: no dots but the last, nothing that a store or a file system could read as a way out."""
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
HEADERS = {
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}


PICTURES = "u/"
"""Under it lie uploaded pictures, of which there are smaller copies."""
BUSY = {"retry-after": "2"}


PREFIX = "/media/"


class MediaEndpoint:
    """Answers a request for whatever lies under PREFIX."""

    def __init__(self, store: ObjectStore, urls: MediaUrls, variants: Variants) -> None:
        self._store = store
        self._urls = urls
        self._variants = variants

    async def __call__(self, request: Request) -> Response:
        """Raises ApiError 403 (the URL), 404 (the object, the copy), 503."""
        key = str(request.scope["path"]).removeprefix(PREFIX)
        query = request.query_params
        remaining_s = self._urls.remaining_s(key, query.get("e", ""), query.get("s", ""))
        shape = KEY.fullmatch(key)
        if remaining_s is None or shape is None:
            raise ApiError(
                403, "url_not_valid", "This URL is not valid any more. Read the job or upload again for a fresh one."
            )
        headers = HEADERS | {"cache-control": _caching(key, remaining_s)}
        preset = _preset(query) if key.startswith(PICTURES) else None
        try:
            if preset is not None:
                copy = await self._variants.read(key, preset)
                return _shown(request, len(copy), headers, preset.media_type, copy)
            size, chunks = await self._store.get(key)
            return _shown(request, size, headers, MEDIA_TYPES[shape[1]], chunks)
        except ObjectMissing:
            raise ApiError(404, "not_found", "This object was removed.") from None
        except StoreUnavailable:
            raise ApiError(503, "unavailable", "The store does not answer.", headers=BUSY) from None
        except (VariantsBusy, VariantFailed):
            raise ApiError(503, "unavailable", "The copy cannot be made now.", headers=BUSY) from None


def router(endpoint: MediaEndpoint) -> APIRouter:
    """The router over one endpoint."""
    routes = APIRouter()

    @routes.api_route(PREFIX + "{key:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def media(request: Request) -> Response:
        return await endpoint(request)

    return routes


def _shown(
    request: Request, size: int, headers: dict[str, str], media_type: str, content: bytes | AsyncIterator[bytes]
) -> Response:
    headers = headers | {"content-length": str(size)}
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    if isinstance(content, bytes):
        return Response(content, headers=headers, media_type=media_type)
    return StreamingResponse(content, headers=headers, media_type=media_type)


def _preset(query: QueryParams) -> Preset | None:
    """The copy that is asked for; None: the picture itself. Raises ApiError 404 for whatever is no preset, to the letter."""
    asked = query.multi_items()
    names = [name for name, _ in asked]
    if set(names) == {"e", "s"} and len(names) == 2:
        return None
    values = dict(asked)
    preset = presets.parse(values.get("w", ""), values.get("f", "webp"))
    if preset is None or len(names) != len(values) or not set(names) <= {"e", "s", "w", "f"}:
        raise ApiError(404, "not_found", "There is no such copy of this picture.")
    return preset


def _caching(key: str, remaining_s: int) -> str:
    """An uploaded picture is named by its content and meant for pages: for everybody, for a year. A job's output is its reader's."""
    if key.startswith(PICTURES):
        return f"public, max-age={min(remaining_s, YEAR_S)}, immutable"
    return f"private, max-age={remaining_s}, immutable"
