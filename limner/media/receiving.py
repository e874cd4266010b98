"""`PUT /media/q/…`: a client's bytes, streamed to disk by an URL that is good for them alone.

Refused before a byte is read: another length, checksum, type or key, an expired URL, an upload that took its bytes already.
Refused while reading: a body that does not hash to what was signed. Until all of it is there and right there is no object.
"""

import asyncio
import binascii
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.media import uploads
from limner.media.store import ObjectExists, ObjectStore, StoreUnavailable
from limner.media.tickets import MEDIA_TYPE, TokenTickets
from limner.web import parsing
from limner.web.errors import ApiError

PREFIX = "/media/q/"
DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
WITHIN_S = 300.0
WRITE_BYTES = 256 * 1024
# The URL alone lets somebody in, so a page of any origin may use it; there is no cookie that it could abuse.
OPEN_TO_PAGES = {"access-control-allow-origin": "*"}
PREFLIGHT = {
    **OPEN_TO_PAGES,
    "access-control-allow-methods": "PUT",
    "access-control-allow-headers": "content-type, content-digest, if-none-match",
    "access-control-max-age": "600",
}


def router(db: Database, store: ObjectStore, tickets: TokenTickets) -> APIRouter:
    """The router over one store."""
    routes = APIRouter()

    @routes.put(PREFIX + "{rest:path}", include_in_schema=False)
    async def put(request: Request, rest: str) -> Response:
        key, size, sha256 = f"q/{rest}", _length(request), _digest(request)
        query = request.query_params
        named = tickets.names(key, size, sha256, query.get("e", ""), query.get("s", ""))
        if named is None:
            raise _refused(
                403, "url_not_valid", "This URL is not for this body: send the headers it was issued with, unchanged."
            )
        if request.headers.get("content-type") != MEDIA_TYPE or request.headers.get("if-none-match") != "*":
            raise _refused(403, "url_not_valid", f"Send Content-Type: {MEDIA_TYPE} and If-None-Match: *.")
        await _require_pending(db, *named)
        try:
            await _keep(store, key, request, size, sha256)
        except ObjectExists:
            raise _refused(412, "already_uploaded", "This upload has its bytes already.") from None
        except StoreUnavailable:
            raise _refused(503, "unavailable", "The store does not answer.", {"retry-after": "2"}) from None
        return Response(status_code=200, headers=OPEN_TO_PAGES)

    @routes.options(PREFIX + "{rest:path}", include_in_schema=False)
    async def preflight(rest: str) -> Response:  # noqa: ARG001  (a page asks before it has anything to show)
        return Response(status_code=204, headers=PREFLIGHT)

    return routes


async def _require_pending(db: Database, org_id: UUID, upload_id: UUID) -> None:
    """By the database's clock. Raises ApiError 403, 404, 412."""
    async with db.tenant_tx(org_id) as tx:
        upload = await uploads.find_any(tx, upload_id)
    if upload is None or upload.state == "deleted":
        raise _refused(404, "not_found", "This upload was deleted.")
    if upload.state == "expired" or upload.expires_at.timestamp() <= db.clock.now():
        raise _refused(403, "url_not_valid", "This URL is over: create the upload again.")
    if upload.state != "pending":
        raise _refused(412, "already_uploaded", "This upload has its bytes already.")


async def _keep(store: ObjectStore, key: str, request: Request, size: int, sha256: bytes) -> None:
    """The body into a file, the file into an object. Whatever happens, the file is gone afterwards."""
    await asyncio.to_thread(store.incoming.mkdir, parents=True, exist_ok=True, mode=0o700)
    path = store.incoming / secrets.token_hex(16)
    try:
        async with asyncio.timeout(WITHIN_S):
            await _receive(path, request.stream(), size, sha256)
        await store.put_new(key, path)
    except TimeoutError:
        raise _refused(408, "body_too_slow", f"The body took more than {WITHIN_S:g} s.") from None
    except ClientDisconnect:
        raise _refused(400, "client_disconnected", "The request ended before its body did.") from None
    except OSError as error:
        raise StoreUnavailable(str(error)) from error
    finally:
        await asyncio.shield(asyncio.to_thread(path.unlink, missing_ok=True))


async def _receive(path: Path, body: AsyncIterator[bytes], size: int, sha256: bytes) -> None:
    """Written as it arrives, a quarter of a mebibyte at a time. Raises ApiError 413 and 422, OSError."""
    hashed = hashlib.sha256()
    seen = 0
    waiting = bytearray()
    with await asyncio.to_thread(path.open, "xb", 0) as file:

        def write(chunk: bytes) -> None:
            hashed.update(chunk)
            file.write(chunk)

        async for chunk in body:
            seen += len(chunk)
            if seen > size:
                raise _refused(413, "body_too_large", "The body is longer than was signed for.")
            waiting += chunk
            if len(waiting) >= WRITE_BYTES:
                await asyncio.to_thread(write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(write, bytes(waiting))
    if seen != size or hashed.digest() != sha256:
        raise _refused(422, "checksum_mismatch", "The body is not the one that was announced: its SHA-256 differs.")


def _length(request: Request) -> int:
    """Raises ApiError 411."""
    text = parsing.one_header(request, "Content-Length") or ""
    if not (text.isascii() and text.isdigit() and len(text) <= 12) or "transfer-encoding" in request.headers:
        raise _refused(411, "length_required", "Send Content-Length.")
    return int(text)


def _digest(request: Request) -> bytes:
    """Of `Content-Digest` (RFC 9530), SHA-256 alone. Raises ApiError 403."""
    match = DIGEST.fullmatch(parsing.one_header(request, "Content-Digest") or "")
    try:
        return binascii.a2b_base64(match[1], strict_mode=True) if match else b""
    except binascii.Error:
        return b""


def _refused(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> ApiError:
    return ApiError(status, code, message, headers={**OPEN_TO_PAGES, "connection": "close", **(headers or {})})
