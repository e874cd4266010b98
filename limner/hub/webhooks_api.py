"""`/api/v1/webhooks`: where an app wants to hear of its events, and what became of each delivery."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.db.tx import Tx
from limner.egress.answers import EgressError
from limner.egress.destinations import Destinations
from limner.events import deliveries, endpoints
from limner.events.deliveries import STATUSES, SpanTooOld
from limner.events.endpoints import Endpoint
from limner.hub import webhooks_docs, webhooks_schemas
from limner.hub.api import answer
from limner.hub.schema import InputSchema
from limner.hub.webhooks_schemas import CHANGE, CREATE, SPAN
from limner.kit import ids
from limner.kit.crypto import Sealer
from limner.web import parsing
from limner.web.caller import Authenticate, Caller
from limner.web.errors import ApiError, invalid, not_found

SCOPE = "webhooks:manage"
MAX_SPAN_DAYS = 31


@dataclass(frozen=True, slots=True)
class WebhooksApi:
    """What the endpoints need. `most`: webhooks of an app; `overlap_s`: how long a rotated secret signs on.

    `keep_days`: after which deliveries are forgotten; 0 is never.
    """

    db: Database
    authenticate: Authenticate
    sealer: Sealer
    destinations: Destinations
    most: int
    overlap_s: int
    keep_days: int


class WebhookEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: WebhooksApi) -> None:
        self._api = api
        self._db = api.db
        self._create_schema = InputSchema(CREATE)
        self._change_schema = InputSchema(CHANGE)
        self._span_schema = InputSchema(SPAN)

    async def create_webhook(self, request: Request) -> Response:
        caller = await self._caller(request)
        body = self._create_schema.parse(await parsing.json_object(request))
        self._check(body["url"])
        with _refusals():
            async with self._db.tenant_tx(caller.org_id) as tx:
                made = await endpoints.create(
                    tx, self._api.sealer, caller.app_id, body["url"], most=self._api.most, description=body["description"],
                    event_types=body["event_types"], ed25519=body["ed25519"],
                )  # fmt: skip
                shown = await self._with_secret(tx, made)
        return answer(shown, 201, {"location": f"/api/v1/webhooks/{made.id}"})

    async def list_webhooks(self, request: Request) -> Response:
        caller = await self._caller(request)
        async with self._db.tenant_tx(caller.org_id) as tx:
            await endpoints.ensure_default(tx, self._api.sealer, caller.app_id)
            found = await endpoints.list_of_app(tx, caller.app_id)
        return answer({"webhooks": [webhooks_schemas.webhook_body(endpoint) for endpoint in found]})

    async def get_webhook(self, request: Request, webhook_id: str) -> Response:
        caller = await self._caller(request)
        async with self._db.tenant_tx(caller.org_id) as tx:
            return answer(webhooks_schemas.webhook_body(await _load(tx, caller, webhook_id)))

    async def change_webhook(self, request: Request, webhook_id: str) -> Response:
        caller = await self._caller(request)
        body = self._change_schema.parse(await parsing.json_object(request))
        enabled = body.pop("enabled", None)
        if body.get("url") is not None:
            self._check(body["url"])
        with _refusals():
            async with self._db.tenant_tx(caller.org_id) as tx:
                endpoint = await _load(tx, caller, webhook_id)
                if "url" in body and body["url"] is None and endpoint.kind != "app":
                    raise invalid({"/url": ["only the app's own webhook may have none"]})
                endpoint = await endpoints.change(tx, endpoint, body)
                if enabled is not None:
                    endpoint = await endpoints.switch(tx, endpoint, enabled=enabled)
        return answer(webhooks_schemas.webhook_body(endpoint))

    async def remove_webhook(self, request: Request, webhook_id: str) -> Response:
        caller = await self._caller(request)
        with _refusals():
            async with self._db.tenant_tx(caller.org_id) as tx:
                await endpoints.remove(tx, await _load(tx, caller, webhook_id))
        return Response(status_code=204)

    async def rotate_webhook(self, request: Request, webhook_id: str) -> Response:
        caller = await self._caller(request)
        async with self._db.tenant_tx(caller.org_id) as tx:
            endpoint = await endpoints.rotate(
                tx, self._api.sealer, await _load(tx, caller, webhook_id), self._api.overlap_s
            )
            return answer(await self._with_secret(tx, endpoint))

    async def get_webhook_secret(self, request: Request, webhook_id: str) -> Response:
        caller = await self._caller(request)
        async with self._db.tenant_tx(caller.org_id) as tx:
            endpoint = await _load(tx, caller, webhook_id)
            await endpoints.give_secret(tx, self._api.sealer, endpoint.id)
            keys = await endpoints.keys(tx, self._api.sealer, endpoint.id)
        return answer(webhooks_schemas.secret_body(endpoint, keys), headers={"cache-control": "no-store"})

    async def list_deliveries(self, request: Request, webhook_id: str) -> Response:
        caller = await self._caller(request)
        limit = parsing.page_limit(request)
        before = parsing.page_cursor(request)
        status = parsing.choice(request, "status", STATUSES)
        async with self._db.tenant_tx(caller.org_id) as tx:
            endpoint = await _load(tx, caller, webhook_id)
            found = await deliveries.list_of_endpoint(tx, endpoint.id, status=status, limit=limit + 1, before=before)
        page = found[:limit]
        return answer(
            {
                "deliveries": [webhooks_schemas.delivery_body(delivery) for delivery in page],
                "next_cursor": page[-1].id if len(found) > limit else None,
            }
        )

    async def redeliver(self, request: Request, delivery_id: str) -> Response:
        caller = await self._caller(request)
        parsed = ids.parse(delivery_id.removeprefix("msg_"))
        if parsed is None:
            raise not_found("delivery")
        with _refusals():
            async with self._db.tenant_single(caller.org_id) as tx:
                status = await deliveries.redeliver(tx, caller.app_id, parsed)
        return answer({"id": parsed, "status": status}, 202)

    async def redeliver_span(self, request: Request, webhook_id: str) -> Response:
        caller = await self._caller(request)
        body = self._span_schema.parse(await parsing.json_object(request))
        since, until = self._span(body)
        after = ids.parse(body["cursor"]) if "cursor" in body else None
        if "cursor" in body and after is None:
            raise invalid({"/cursor": ["is not a cursor of this list"]})
        with _refusals():
            async with self._db.tenant_tx(caller.org_id) as tx:
                endpoint = await _load(tx, caller, webhook_id)
                span = await deliveries.redeliver_span(
                    tx, caller.app_id, endpoint.id, since, until, after=after, everything=body["everything"]
                )
        return answer({"queued": span.queued, "next_cursor": span.last}, 202)

    async def _caller(self, request: Request) -> Caller:
        caller = await self._api.authenticate(request)
        caller.require(SCOPE)
        return caller

    def _check(self, url: str) -> None:
        """Raises ApiError 400 for a URL that nothing would ever be sent to."""
        try:
            self._api.destinations.check(url)
        except EgressError as error:
            raise invalid({"/url": [str(error)]}, error.code, "Nothing can be sent to this URL.") from None

    async def _with_secret(self, tx: Tx, endpoint: Endpoint) -> dict[str, Any]:
        keys = await endpoints.keys(tx, self._api.sealer, endpoint.id)
        secret = webhooks_schemas.secret_body(endpoint, keys)["secret"]
        return webhooks_schemas.webhook_body(endpoint) | {"secret": secret}

    def _span(self, body: dict[str, Any]) -> tuple[datetime, datetime]:
        """(since, until) of a body. Raises ApiError 400."""
        since = parsing.moment_at("/since", body["since"])
        now = datetime.fromtimestamp(self._db.clock.now(), UTC)
        until = parsing.moment_at("/until", body["until"]) if "until" in body else now
        if until <= since:
            raise invalid({"/until": ["must be later than since"]})
        if (until - since).days >= MAX_SPAN_DAYS:
            raise invalid({"/since": [f"must be less than {MAX_SPAN_DAYS} days before until"]})
        try:
            deliveries.check_span(since, now, self._api.keep_days)
        except SpanTooOld as old:
            raise invalid({"/since": [str(old)]}) from None
        return since, until


def router(api: WebhooksApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])
    points = WebhookEndpoints(api)
    one = "/{webhook_id}"
    for path, method, endpoint, described in (
        ("", "POST", points.create_webhook, webhooks_docs.CREATE_WEBHOOK),
        ("", "GET", points.list_webhooks, webhooks_docs.LIST_WEBHOOKS),
        ("/deliveries/{delivery_id}/redeliver", "POST", points.redeliver, webhooks_docs.REDELIVER),
        (one, "GET", points.get_webhook, webhooks_docs.GET_WEBHOOK),
        (one, "PATCH", points.change_webhook, webhooks_docs.CHANGE_WEBHOOK),
        (one, "DELETE", points.remove_webhook, webhooks_docs.REMOVE_WEBHOOK),
        (f"{one}/rotate", "POST", points.rotate_webhook, webhooks_docs.ROTATE_WEBHOOK),
        (f"{one}/secret", "GET", points.get_webhook_secret, webhooks_docs.GET_WEBHOOK_SECRET),
        (f"{one}/deliveries", "GET", points.list_deliveries, webhooks_docs.LIST_DELIVERIES),
        (f"{one}/redeliver", "POST", points.redeliver_span, webhooks_docs.REDELIVER_SPAN),
    ):
        routes.add_api_route(path, endpoint, methods=[method], **described)
    return routes


async def _load(tx: Tx, caller: Caller, webhook_id: str) -> Endpoint:
    parsed: UUID | None = ids.parse(webhook_id)
    if parsed is None:
        raise not_found("webhook")
    try:
        return await endpoints.get(tx, caller.app_id, parsed)
    except endpoints.EndpointNotFound:
        raise not_found("webhook") from None


@contextmanager
def _refusals() -> Iterator[None]:
    """What endpoints and deliveries refuse, in the API's words."""
    try:
        yield
    except endpoints.UrlTaken as error:
        details = {"/url": [str(error)]}
        raise ApiError(409, "webhook_exists", "The app has a webhook with this URL.", details=details) from None
    except endpoints.TooManyEndpoints as error:
        raise ApiError(409, "too_many_webhooks", f"{str(error).capitalize()}.") from None
    except endpoints.DefaultEndpoint:
        raise ApiError(
            409, "default_webhook", "The app's own webhook cannot be removed: set its url to null instead."
        ) from None
    except deliveries.DeliveryNotFound:
        raise not_found("delivery") from None
    except deliveries.EndpointOff:
        raise ApiError(409, "webhook_disabled", "The webhook is turned off: turn it on first.") from None
