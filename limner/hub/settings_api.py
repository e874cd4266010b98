"""`/api/v1/settings/ai`: by which models an organization's work is done, and in what tone, where a request leaves it open."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.hub import ai_settings, docs, schemas
from limner.hub.ai_settings import MAX_TONE, AiSettings
from limner.hub.api import answer
from limner.hub.provider_keys import Actor
from limner.hub.schema import InputSchema
from limner.web import parsing
from limner.web.caller import Authenticate, Caller
from limner.web.errors import invalid

SCOPE = "settings:write"
PUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "default_models": {
            "type": "object", "default": {}, "maxProperties": 50, "additionalProperties": False,
            "patternProperties": {r"^[a-z][a-z0-9_.]{0,63}$": {"type": "string", "minLength": 1, "maxLength": 128}},
            "description": "By kind, the model of requests that name none: of POST /api/v1/generate with a `kind`, and of /v1 with the"
            " model `default`.",
        },
        "tone": {
            "type": "string", "maxLength": MAX_TONE, "default": "",
            "description": "Goes in front of what holds for every answer, in jobs of the kind text.generate that name no model.",
        },
        "own_keys_only": {
            "type": "boolean", "default": False,
            "description": "Providers where the organization has no key of its own are not asked; models of this machine are.",
        },
    },
    "additionalProperties": False,
}  # fmt: skip
EXAMPLE = {"default_models": {"text.generate": "local/writer"}, "tone": "Plain and friendly.", "own_keys_only": False}


class AiSettingsBody(BaseModel):
    """`byok_fee_percent`: of the list price, for what an own key delivers; the operator sets it."""

    default_models: dict[str, str]
    tone: str
    own_keys_only: bool
    byok_fee_percent: int


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.Problem, "description": docs.REASONS[status]}
        for status in (400, 401, 403, *statuses, 503)
    }


GET: dict[str, Any] = {
    "summary": "Get the AI settings",
    "response_model": AiSettingsBody,
    "responses": _errors(429),
}
SET: dict[str, Any] = {
    "summary": "Set the AI settings",
    "description": "All of them: what is not given is as if it had never been set. In force within ten seconds.",
    "response_model": AiSettingsBody,
    "responses": _errors(408, 413, 415),
    "openapi_extra": {
        "requestBody": {"required": True, "content": {"application/json": {"schema": PUT, "example": EXAMPLE}}}
    },
}


@dataclass(frozen=True, slots=True)
class SettingsApi:
    """What the endpoints need."""

    db: Database
    authenticate: Authenticate


class SettingsEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: SettingsApi) -> None:
        self._api = api
        self._schema = InputSchema(PUT)

    async def get_ai_settings(self, request: Request) -> Response:
        caller = await self._caller(request)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            return answer(body(await ai_settings.get(tx)))

    async def put_ai_settings(self, request: Request) -> Response:
        caller = await self._caller(request)
        given = self._schema.parse(await parsing.json_object(request))
        if not given["tone"].replace("\n", " ").isprintable():
            raise invalid({"/tone": ["must be printable"]})
        for kind, name in given["default_models"].items():
            if not name.isprintable():
                raise _no_model(kind, "is not a model")
        try:
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                wanted = AiSettings(given["default_models"], given["tone"], given["own_keys_only"])
                return answer(body(await ai_settings.put(tx, wanted, Actor("app", f"api key {caller.key_id}"))))
        except ai_settings.NotSold as error:
            raise _no_model(error.kind, str(error)) from None

    async def _caller(self, request: Request) -> Caller:
        caller = await self._api.authenticate(request)
        caller.require(SCOPE)
        return caller


def router(api: SettingsApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1/settings", tags=["settings"])
    points = SettingsEndpoints(api)
    routes.add_api_route("/ai", points.get_ai_settings, methods=["GET"], **GET)
    routes.add_api_route("/ai", points.put_ai_settings, methods=["PUT"], **SET)
    return routes


def body(settings: AiSettings) -> dict[str, Any]:
    """For machines; the command line prints the same."""
    return {
        "default_models": settings.default_models, "tone": settings.tone, "own_keys_only": settings.own_keys_only,
        "byok_fee_percent": settings.byok_fee_percent,
    }  # fmt: skip


def _no_model(kind: str, words: str) -> Exception:
    return invalid({f"/default_models/{kind}": [words]}, "model_not_supported")
