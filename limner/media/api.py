"""`GET /media/<key>`: a stored object by signed URL, with headers that let a browser show it and do nothing else."""

import re

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from limner.media.store import ObjectMissing, ObjectStore, StoreUnavailable
from limner.media.urls import MediaUrls
from limner.web.errors import ApiError

KEY = re.compile(r"(?:[A-Za-z0-9_-]+/)+[A-Za-z0-9_-]+\.(png|jpg|webp)")
"""Of the keys limner writes: no dots but the last, nothing that a store or a file system could read as a way out."""
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
HEADERS = {
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}


def router(store: ObjectStore, urls: MediaUrls) -> APIRouter:
    """The router over one store."""
    routes = APIRouter()

    @routes.api_route("/media/{key:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def media(request: Request, key: str) -> Response:
        query = request.query_params
        remaining_s = urls.remaining_s(key, query.get("e", ""), query.get("s", ""))
        shape = KEY.fullmatch(key)
        if remaining_s is None or shape is None:
            raise ApiError(403, "url_not_valid", "This URL is not valid any more. Read the job again for a fresh one.")
        try:
            size, chunks = await store.get(key)
        except ObjectMissing:
            raise ApiError(404, "not_found", "This object was removed.") from None
        except StoreUnavailable:
            raise ApiError(503, "unavailable", "The store does not answer.", headers={"retry-after": "2"}) from None
        media_type = MEDIA_TYPES[shape[1]]
        headers = HEADERS | {
            "content-length": str(size),
            "cache-control": f"private, max-age={remaining_s}, immutable",
        }
        if request.method == "HEAD":
            return Response(headers=headers, media_type=media_type)
        return StreamingResponse(chunks, headers=headers, media_type=media_type)

    return routes
