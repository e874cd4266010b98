"""`/api/v1/uploads`: pictures and recordings that an app brings, from a reserved place to what jobs can use."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.db.tx import Tx
from limner.hub import uploads_docs as docs
from limner.hub.api import admit_user, answer
from limner.hub.inputs import UPLOAD
from limner.hub.schema import InputSchema
from limner.hub.submission import Submitter
from limner.kit import ids
from limner.media import tending, uploads
from limner.media.processing import Processor
from limner.media.sandbox import SandboxBusy
from limner.media.store import ObjectStore, StoreUnavailable
from limner.media.tickets import Tickets
from limner.media.uploads import Quota, Upload
from limner.media.urls import MediaUrls
from limner.telemetry import logs
from limner.web import parsing
from limner.web.caller import Authenticate, Caller
from limner.web.errors import ApiError, invalid, not_found

SCOPE = "uploads:create"
DESCRIBER = "local/describe"
log = logs.get("uploads")


@dataclass(frozen=True, slots=True)
class UploadsApi:
    """What the endpoints need. `max_bytes`: of one file, by its kind."""

    db: Database
    authenticate: Authenticate
    store: ObjectStore
    processor: Processor
    tickets: Tickets
    urls: MediaUrls
    quota: Quota
    max_bytes: Mapping[str, int]
    submitter: Submitter


class UploadEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: UploadsApi) -> None:
        self._api = api
        self._schema = InputSchema(docs.UPLOAD)

    async def create_upload(self, request: Request) -> Response:
        caller = await self._caller(request)
        body = self._schema.parse(await parsing.json_object(request))
        key = parsing.idempotency_key(request, body.pop("idempotency_key", None))
        wanted = self._wanted(caller, body, key)
        try:
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                await admit_user(tx, caller)
                upload, replayed = await uploads.reserve(tx, wanted, self._api.quota)
        except uploads.KeyReused as error:
            raise ApiError(422, "idempotency_key_reused", str(error).capitalize() + ".") from None
        except uploads.QuotaFull as error:
            raise _full(error) from None
        shown = self._shape(upload)
        if upload.state == "pending":
            ticket = self._api.tickets.issue(caller.org_id, upload)
            shown["upload"] = {
                "method": "PUT",
                "url": ticket.url,
                "headers": ticket.headers,
                "expires_at": upload.expires_at,
            }
        headers = {"location": f"/api/v1/uploads/{upload.id}"}
        return answer(shown, 201, headers | ({"idempotent-replayed": "true"} if replayed else {}))

    async def complete_upload(self, request: Request, upload_id: str) -> Response:
        caller = await self._caller(request)
        upload = await self._load(caller, upload_id)
        if upload.state in {"pending", "processing"}:
            outcome = await self._process(caller.org_id, upload)
            if outcome == "missing":
                raise ApiError(409, "not_uploaded", "Nothing was put there yet: send the bytes first.")
            upload = await self._load(caller, upload_id)
        if upload.state == "expired":
            raise ApiError(409, "upload_expired", "The upload has expired: create it again.")
        if upload.state == "rejected":
            raise ApiError(422, upload.error_code or "rejected", upload.error_message or "The upload is rejected.")
        if upload.state == "ready":
            return answer(self._shape(upload))
        return answer(self._shape(upload), 202, {"retry-after": "1"})

    async def get_upload(self, request: Request, upload_id: str) -> Response:
        caller = await self._caller(request)
        upload = await self._load(caller, upload_id)
        if upload.description_state == "pending":
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                noted = await uploads.note_description(tx, upload.id)
            upload = await self._load(caller, upload_id) if noted else upload
        return answer(self._shape(upload))

    async def list_uploads(self, request: Request) -> Response:
        caller = await self._caller(request)
        limit = parsing.page_limit(request)
        status = parsing.choice(request, "status", uploads.STATES)
        before = parsing.page_cursor(request)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            await admit_user(tx, caller)
            found = await uploads.list_of_app(
                tx, caller.app_id, external_id=caller.external_id, state=status, limit=limit + 1, before=before
            )
        page = found[:limit]
        shown = [self._shape(upload) for upload in page]
        return answer({"uploads": shown, "next_cursor": page[-1].id if len(found) > limit else None})

    async def describe_upload(self, request: Request, upload_id: str) -> Response:
        """The order's idempotency key is the upload's: however often it is asked for, one job describes it."""
        caller = await self._caller(request)
        upload = await self._load(caller, upload_id)
        if upload.state != "ready":
            raise ApiError(409, "upload_not_ready", f"The upload is {upload.state}.")
        if upload.kind != "image":
            raise ApiError(409, "not_a_picture", "Only pictures are described.")
        if upload.description_state in {None, "failed"}:
            body = {
                "model": DESCRIBER,
                "input": {"images": [f"{UPLOAD}{upload.id}"]},
                "idempotency_key": f"describe:{upload.id}:{upload.descriptions}",
            }
            accepted = await self._api.submitter.submit(request, caller, body)
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                await uploads.describe(tx, upload.id, accepted.submitted.job_id)
            upload = await self._load(caller, upload_id)
        return answer(self._shape(upload), 200 if upload.description_state == "ready" else 202)

    async def delete_upload(self, request: Request, upload_id: str) -> Response:
        caller = await self._caller(request)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            upload = await _find(tx, caller, upload_id)
            await uploads.delete(tx, caller.app_id, upload.id)
        try:
            await tending.remove_objects(self._api.store, caller.org_id, upload.id)
        except StoreUnavailable as error:  # a worker does it when the store is back
            log.warning("upload.kept", upload=upload.id, org=caller.org_id, error=str(error))
        return Response(status_code=204)

    def _wanted(self, caller: Caller, body: dict[str, Any], key: str | None) -> uploads.Wanted:
        """Raises ApiError 400."""
        most, kind = self._api.max_bytes[body["kind"]], body["kind"]
        if body["size_bytes"] > most:
            words = {"/size_bytes": [f"must not be more than {most}"]}
            raise invalid(
                words, f"{kind}_too_large", f"The {'image' if kind == 'image' else 'recording'} is too large."
            )
        if body["name"] and not body["name"].isprintable():
            raise invalid({"/name": ["must be printable characters"]})
        return uploads.Wanted(
            app_id=caller.app_id,
            external_id=caller.external_id,
            kind=body["kind"],
            name=body["name"],
            size_bytes=body["size_bytes"],
            sha256=bytes.fromhex(body["sha256"]),
            idempotency_key=key,
            request_hash=hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest(),
        )

    async def _process(self, org_id: UUID, upload: Upload) -> str:
        try:
            return await self._api.processor.process(org_id, upload)
        except (StoreUnavailable, SandboxBusy):
            raise ApiError(
                503, "unavailable", "The file cannot be looked at now; ask again.", headers={"retry-after": "2"}
            ) from None

    async def _caller(self, request: Request) -> Caller:
        caller = await self._api.authenticate(request)
        caller.require(SCOPE)
        return caller

    async def _load(self, caller: Caller, upload_id: str) -> Upload:
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            return await _find(tx, caller, upload_id)

    def _shape(self, upload: Upload) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "id": upload.id,
            "status": upload.state,
            "kind": upload.kind,
            "name": upload.name,
            "user_id": upload.external_id,
            "size_bytes": upload.size_bytes,
            "sha256": upload.sha256.hex(),
            "created_at": upload.created_at,
        }
        if upload.state == "ready" and upload.kind == "audio":
            shown |= {
                "media_type": upload.media_type,
                "duration_s": (upload.duration_ms or 0) / 1000,
                "bytes": upload.stored_bytes,
            }
        elif upload.state == "ready":
            assert upload.object_key is not None
            assert upload.thumbhash is not None
            shown |= {
                "url": self._api.urls.sign_lasting(upload.object_key),
                "media_type": upload.media_type,
                "width": upload.width,
                "height": upload.height,
                "bytes": upload.stored_bytes,
                "has_alpha": upload.has_alpha,
                "thumbhash": base64.b64encode(upload.thumbhash).decode(),
                "dominant_color": upload.colour,
            }
            if upload.description_state is not None:
                said = {"status": upload.description_state, "job_id": upload.description_job}
                shown["description"] = said | (upload.description or {})
        elif upload.error_code is not None:
            shown["error"] = {"code": upload.error_code, "message": upload.error_message}
        return shown


def router(api: UploadsApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1/uploads", tags=["uploads"])
    endpoints = UploadEndpoints(api)
    routes.add_api_route("", endpoints.create_upload, methods=["POST"], status_code=201, **docs.CREATE_UPLOAD)
    routes.add_api_route("", endpoints.list_uploads, methods=["GET"], **docs.LIST_UPLOADS)
    one = "/{upload_id}"
    routes.add_api_route(one + "/complete", endpoints.complete_upload, methods=["POST"], **docs.COMPLETE_UPLOAD)
    routes.add_api_route(
        one + "/describe", endpoints.describe_upload, methods=["POST"], status_code=202, **docs.DESCRIBE_UPLOAD
    )
    routes.add_api_route(one, endpoints.get_upload, methods=["GET"], **docs.GET_UPLOAD)
    routes.add_api_route(one, endpoints.delete_upload, methods=["DELETE"], status_code=204, **docs.DELETE_UPLOAD)
    return routes


async def _find(tx: Tx, caller: Caller, upload_id: str) -> Upload:
    await admit_user(tx, caller)
    parsed = ids.parse(upload_id)
    if parsed is None:
        raise not_found("upload")
    try:
        return await uploads.get(tx, caller.app_id, parsed, caller.external_id)
    except uploads.UploadNotFound:
        raise not_found("upload") from None


def _full(error: uploads.QuotaFull) -> ApiError:
    pointer = "/size_bytes" if error.what == "bytes" else ""
    words = f"the organization's uploads take {error.used} of {error.limit} {error.what}"
    return ApiError(409, "quota_exceeded", "There is no room left: delete uploads first.", details={pointer: [words]})
