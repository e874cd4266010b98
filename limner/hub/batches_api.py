"""`/api/v1/batches`: up to a thousand jobs by one request."""

import re
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.db.tx import Tx
from limner.hub import batch_receipts, batches, batches_docs, jobs
from limner.hub.api import POLL_S, HubApi, admit_user, answer
from limner.hub.batch_submission import BatchSubmitter
from limner.hub.batches import Batch
from limner.kit import ids
from limner.web import parsing
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid, not_found

PLACE = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class BatchesApi:
    """What the endpoints need."""

    hub: HubApi
    submitter: BatchSubmitter


class BatchEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: BatchesApi) -> None:
        self._hub = api.hub
        self._submitter = api.submitter

    async def submit_batch(self, request: Request) -> Response:
        caller = await self._hub.authenticate(request)
        submitted = await self._submitter.submit(request, caller)
        headers = {"location": f"/api/v1/batches/{submitted.batch_id}"}
        if submitted.replayed:
            headers["idempotent-replayed"] = "true"
        return answer(batches_docs.accepted_body(submitted), 202, headers)

    async def list_batches(self, request: Request) -> Response:
        caller = await self._hub.authenticate(request)
        caller.require("jobs:read")
        limit = parsing.page_limit(request)
        async with self._hub.db.tenant_tx(caller.org_id) as tx:
            await admit_user(tx, caller)
            found = await batches.list_of_app(
                tx, caller.app_id, external_id=caller.external_id, limit=limit + 1, before=parsing.page_cursor(request)
            )
        page = found[:limit]
        return answer(
            {
                "batches": [batches_docs.batch_body(batch) for batch in page],
                "next_cursor": page[-1].id if len(found) > limit else None,
            }
        )

    async def get_batch(self, request: Request, batch_id: str) -> Response:
        caller = await self._hub.authenticate(request)
        caller.require("jobs:read")
        async with self._hub.db.tenant_tx(caller.org_id) as tx:
            batch = await _load(tx, caller, batch_id)
        headers = {"retry-after": str(POLL_S)} if batch.finished_at is None else {}
        return answer(batches_docs.batch_body(batch), headers=headers)

    async def list_batch_items(self, request: Request, batch_id: str) -> Response:
        caller = await self._hub.authenticate(request)
        caller.require("jobs:read")
        limit = parsing.page_limit(request)
        state = parsing.choice(request, "status", jobs.STATES)
        after = _after(request)
        async with self._hub.db.tenant_tx(caller.org_id) as tx:
            batch = await _load(tx, caller, batch_id)
            found = await batches.list_items(tx, batch.id, state=state, limit=limit + 1, after=after)
        page = found[:limit]
        return answer(
            {
                "items": [batches_docs.item_body(item, self._hub.urls) for item in page],
                "next_cursor": str(page[-1].place) if len(found) > limit else None,
            }
        )

    async def cancel_batch(self, request: Request, batch_id: str) -> Response:
        caller = await self._hub.authenticate(request)
        caller.require("jobs:create")
        async with self._hub.db.tenant_tx(caller.org_id) as tx:
            batch = await _load(tx, caller, batch_id)
        outcome = await batches.cancel(self._hub.db, caller.org_id, caller.app_id, batch.id, batch.end_user_id)
        self._hub.submitter.waker.wake(event=True)
        if outcome == "already_completed":
            raise ApiError(409, outcome, "The batch has ended already.")
        return answer({"batch_id": batch.id, "status": outcome}, 202 if outcome == "requested" else 200)

    async def get_batch_receipt(self, request: Request, batch_id: str) -> Response:
        caller = await self._hub.authenticate(request)
        caller.require("jobs:read")
        async with self._hub.db.tenant_tx(caller.org_id) as tx:
            return answer(await batch_receipts.build(tx, await _load(tx, caller, batch_id)))


def router(api: BatchesApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1", tags=["batches"])
    endpoints, one = BatchEndpoints(api), "/batches/{batch_id}"
    routes.add_api_route("/batches", endpoints.submit_batch, methods=["POST"], status_code=202, **batches_docs.SUBMIT)
    routes.add_api_route("/batches", endpoints.list_batches, methods=["GET"], **batches_docs.LIST)
    routes.add_api_route(one, endpoints.get_batch, methods=["GET"], **batches_docs.GET)
    routes.add_api_route(f"{one}/items", endpoints.list_batch_items, methods=["GET"], **batches_docs.ITEMS)
    routes.add_api_route(f"{one}/cancel", endpoints.cancel_batch, methods=["POST"], **batches_docs.CANCEL)
    routes.add_api_route(f"{one}/receipt", endpoints.get_batch_receipt, methods=["GET"], **batches_docs.RECEIPT)
    return routes


async def _load(tx: Tx, caller: Caller, batch_id: str) -> Batch:
    """The caller's own batch, and its user's when it names one. Raises ApiError 404; 403 for a deactivated user."""
    await admit_user(tx, caller)
    parsed = ids.parse(batch_id)
    if parsed is None:
        raise not_found("batch")
    try:
        return await batches.get(tx, caller.app_id, parsed, caller.external_id)
    except batches.BatchNotFound:
        raise not_found("batch") from None


def _after(request: Request) -> int:
    """The place that a page ended with; -1 for the first page. Raises ApiError 400."""
    text = request.query_params.get("cursor")
    if not text:
        return -1
    if not PLACE.fullmatch(text):
        raise invalid({"/cursor": ["is not a cursor of this list"]})
    return int(text)
