"""`/api/v1/provider-keys`: an organization's own keys at providers. They come in, and never go out again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.egress.own_keys import MAX_LENGTH, MIN_LENGTH, OwnKeys
from limner.hub import docs, provider_keys, schemas
from limner.hub.api import answer
from limner.hub.catalog import ProviderNotFound
from limner.hub.provider_keys import Actor, ProviderKey
from limner.hub.schema import InputSchema
from limner.web import parsing
from limner.web.caller import Authenticate, Caller
from limner.web.errors import ApiError, invalid, not_found

SCOPE = "providers:write"
PUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "key": {
            "type": "string", "minLength": MIN_LENGTH, "maxLength": MAX_LENGTH, "pattern": "^[!-~]+$",
            "description": "The key, in the provider's own form. Absent: the one that is there stays.",
        },
        "enabled": {"type": "boolean", "default": True, "description": "Off: it is kept and not used."},
    },
    "additionalProperties": False,
}  # fmt: skip


class Refusal(BaseModel):
    """Why the provider did not take the key, at its latest use."""

    code: str
    at: datetime | None


class ProviderKeyBody(BaseModel):
    """What may be told of a key. `fingerprint` tells two keys apart; `sent_to`: the one origin that it ever goes to."""

    provider: str
    last4: str
    fingerprint: str
    enabled: bool
    sent_to: str
    created_by: str
    created_at: datetime
    last_used_at: datetime | None
    last_error: Refusal | None


class ProviderKeyList(BaseModel):
    provider_keys: list[ProviderKeyBody]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = docs.REASONS | {409: "`provider_takes_no_keys`: it needs none, or its adapter cannot use one."}
    return {
        status: {"model": schemas.Problem, "description": reasons[status]} for status in (400, 401, 403, *statuses, 503)
    }


LIST: dict[str, Any] = {
    "summary": "List own keys",
    "description": "The organization's own keys at providers, by provider: all but the keys themselves.",
    "response_model": ProviderKeyList,
    "responses": _errors(429),
}
GET: dict[str, Any] = {
    "summary": "Get an own key's facts",
    "response_model": ProviderKeyBody,
    "responses": _errors(404, 429),
}
SET: dict[str, Any] = {
    "summary": "Bring a key",
    "description": "From now on (within seconds) the organization's jobs and calls go to this provider with this key, instead of the"
    " platform's. It is kept encrypted, is sent to the provider's own address alone, and is never shown again.",
    "response_model": ProviderKeyBody,
    "responses": _errors(404, 408, 409, 413, 415),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": PUT, "example": {"key": "sk-your-own-key-at-the-provider"}}},
        }
    },
}
REMOVE: dict[str, Any] = {
    "summary": "Remove an own key",
    "description": "Within seconds nothing is sent with it any more. Receipts still tell what was.",
    "status_code": 204,
    "response_class": Response,
    "responses": _errors(404),
}


@dataclass(frozen=True, slots=True)
class ProviderKeysApi:
    """What the endpoints need."""

    db: Database
    authenticate: Authenticate
    keys: OwnKeys


class ProviderKeyEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: ProviderKeysApi) -> None:
        self._api = api
        self._schema = InputSchema(PUT)

    async def list_provider_keys(self, request: Request) -> Response:
        caller = await self._caller(request)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            found = await provider_keys.list_all(tx)
        return answer({"provider_keys": [body(key) for key in found]})

    async def get_provider_key(self, request: Request, provider: str) -> Response:
        caller = await self._caller(request)
        with _refusals():
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                return answer(body(await provider_keys.get(tx, _name(provider))))

    async def put_provider_key(self, request: Request, provider: str) -> Response:
        caller = await self._caller(request)
        given = self._schema.parse(await parsing.json_object(request))
        actor, name = _actor(caller), _name(provider)
        with _refusals():
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                if "key" in given:
                    found = await provider_keys.put(
                        tx, self._api.keys, name, given["key"], actor, enabled=given["enabled"]
                    )
                else:
                    found = await provider_keys.switch(tx, name, actor, enabled=given["enabled"])
        return answer(body(found))

    async def remove_provider_key(self, request: Request, provider: str) -> Response:
        caller = await self._caller(request)
        with _refusals():
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                await provider_keys.remove(tx, _name(provider), _actor(caller))
        return Response(status_code=204)

    async def _caller(self, request: Request) -> Caller:
        caller = await self._api.authenticate(request)
        caller.require(SCOPE)
        return caller


def router(api: ProviderKeysApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1/provider-keys", tags=["settings"])
    points = ProviderKeyEndpoints(api)
    for path, method, endpoint, described in (
        ("", "GET", points.list_provider_keys, LIST),
        ("/{provider}", "GET", points.get_provider_key, GET),
        ("/{provider}", "PUT", points.put_provider_key, SET),
        ("/{provider}", "DELETE", points.remove_provider_key, REMOVE),
    ):
        routes.add_api_route(path, endpoint, methods=[method], **described)
    return routes


def body(key: ProviderKey) -> dict[str, Any]:
    """For machines; the command line prints the same."""
    return {
        "provider": key.provider, "last4": key.last4, "fingerprint": key.fingerprint, "enabled": key.is_enabled,
        "sent_to": key.sent_to, "created_by": key.created_by, "created_at": key.created_at, "last_used_at": key.last_used_at,
        "last_error": None if key.last_error is None else {"code": key.last_error, "at": key.last_error_at},
    }  # fmt: skip


def _actor(caller: Caller) -> Actor:
    return Actor("app", f"api key {caller.key_id}")


def _name(provider: str) -> str:
    """As given, where a name can be such; the database would not even take the rest."""
    if not provider.isprintable():
        raise not_found("provider")
    return provider


@contextmanager
def _refusals() -> Iterator[None]:
    """What the verbs refuse, in the API's words."""
    try:
        yield
    except ProviderNotFound:
        raise not_found("provider") from None
    except provider_keys.KeyNotFound:
        raise not_found("provider_key") from None
    except provider_keys.NotKeyed as error:
        raise ApiError(409, "provider_takes_no_keys", f"{str(error).capitalize()}.") from None
    except provider_keys.BadKey as error:
        raise invalid({"/key": [str(error)]}) from None
