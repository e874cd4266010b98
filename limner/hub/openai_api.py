"""`/v1`: the interface that OpenAI's clients speak. Each call is a job with a hold, a receipt and one settlement."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import (
    ai_settings,
    calls,
    catalog,
    chat,
    endings,
    jobs,
    openai_docs,
    openai_replays,
    pricing,
    routing,
    submission,
    terms,
)
from limner.hub.api import answer
from limner.hub.calls import Candidates
from limner.hub.catalog import Model
from limner.hub.chat import Asked, Surface
from limner.hub.endings import MESSAGES
from limner.hub.head_start import HeadStart
from limner.hub.openai_answers import Desk, Order, StreamedAnswer, WholeAnswer, whole_estimate
from limner.hub.openai_audio import AudioApi, AudioEndpoints
from limner.hub.openai_images import ImageEndpoints, ImagesApi
from limner.hub.pricing import Tokens
from limner.hub.remembered import RouteCache
from limner.hub.submission import Submitter
from limner.hub.terms import Terms
from limner.kit import ids
from limner.ledger import refusals
from limner.web import parsing
from limner.web.caller import Authenticate, Caller
from limner.web.errors import ApiError, invalid

KINDS = (
    "text.generate", "text.embed", "text.moderate", "image.generate", "image.edit", "image.variations", "audio.transcribe",
)  # fmt: skip
DEADLINE_S = 3600


@dataclass(frozen=True, slots=True)
class OpenAIApi:
    """What the endpoints need."""

    db: Database
    authenticate: Authenticate
    submitter: Submitter
    desk: Desk
    routes: RouteCache


class ChatEndpoints:
    """One method an endpoint."""

    def __init__(self, api: OpenAIApi) -> None:
        self._api = api

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat.CHAT)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, chat.COMPLETIONS)

    async def embed(self, request: Request) -> Response:
        return await self._answer(request, chat.EMBEDDINGS)

    async def moderate(self, request: Request) -> Response:
        return await self._answer(request, chat.MODERATIONS)

    async def list_models(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            found = await catalog.list_models(tx)
        return answer({"object": "list", "data": [_model_body(model) for model in found if model.kind in KINDS]})

    async def get_model(self, request: Request, name: str) -> Response:
        caller = await self._api.authenticate(request)
        if not name.isprintable():  # the database would not even take it
            raise chat.no_model(name)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            model = await catalog.find_model(tx, name)
        if model is None or model.kind not in KINDS:
            raise chat.no_model(name)
        return answer(_model_body(model))

    async def _answer(self, request: Request, surface: Surface) -> Response:
        order = await self._reserve(request, surface)
        if isinstance(order, Response):
            return order
        if order.asked.stream:
            return StreamedAnswer(self._api.desk, order)
        return await WholeAnswer(self._api.desk, order).ask()

    async def _reserve(self, request: Request, surface: Surface) -> Order | Response:
        began = time.perf_counter()
        caller = await self._api.authenticate(request)
        raw, value = await parsing.json_body(request, chat.MANY if surface is chat.EMBEDDINGS else 1)
        caller = submission.for_its_user(caller, value.get("user"))
        external_id = submission.payer(caller)
        asked = chat.read(raw, value, surface)
        model, routes = await self._model(caller, asked)
        most = chat.most(asked, model)
        key = parsing.idempotency_key(request, None)
        job_id = ids.new()
        asking = routing.Asking(job_id, Tokens(asked.likely, 0, most.written))
        bounds = self._api.submitter.limits.of(caller.quotas, for_user=external_id is not None)
        path = surface.path[1:].replace("/", ".")
        canonical = raw if key is None else orjson.dumps(value, option=orjson.OPT_SORT_KEYS)

        def wanted(candidates: Candidates) -> jobs.Submission:
            agreed = terms.of_call(candidates)
            return jobs.Submission(
                app_id=caller.app_id, external_id=external_id, route=path, model_id=model.id, model=model.name, kind=model.kind,
                unit_price_mc=model.price_mc, hold_mc=terms.hold_mc(pricing.tokens_mc(model, most), agreed),
                token_prices=pricing.rates(model), terms=agreed, priority=10, idempotency_key=key,
                request_hash=hashlib.sha256(canonical).digest(), input=_facts(asked, model, most, agreed), wait_s=0,
                deadline_s=DEADLINE_S, max_runs=calls.MAX_RUNS, request_id=request.state.request_id,
                traceparent=parsing.traceparent(request), limits=bounds,
                call=self._api.desk.calls.first(candidates), job_id=job_id,
            )  # fmt: skip

        head_start = HeadStart(self._api.desk.providers, asked, model, job_id)
        try:
            candidates, call = await self._book(caller.org_id, routes, asking, wanted, head_start)
        except BaseException:
            head_start.drop()
            raise
        if isinstance(call, jobs.Submitted):
            head_start.drop()
            await self._api.desk.calls.settled(caller.org_id)  # it may have been answered a moment ago
            return await openai_replays.replay(self._api.db, caller, call)
        request.state.log |= {"job": call.lease.job_id, "model": model.name}
        clock = self._api.db.clock
        return Order(asked, model, most, candidates, call, began, head_start, bounds, clock, keeps=key is not None)

    async def _named(self, caller: Caller, asked: Asked) -> str:
        """The model's name, or that of the organization's own choice."""
        if asked.model != ai_settings.DEFAULT:
            return asked.model
        settings = await self._api.submitter.settings(caller.org_id)
        return settings.default_models.get(asked.surface.kind, asked.model)

    async def _model(self, caller: Caller, asked: Asked) -> tuple[Model, list[catalog.Route]]:
        """The model and its routes. Raises ApiError 404."""
        try:
            model = (await self._api.submitter.model(caller.org_id, await self._named(caller, asked))).row
        except ApiError:
            raise chat.no_model(asked.model) from None
        if model.kind != asked.surface.kind:
            raise invalid({"/model": [f"is not a model for {asked.surface.path}"]}, "model_not_supported")
        routes = self._api.routes.find(caller.org_id, model.id)
        if routes is None:
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                routes = self._api.routes.put(caller.org_id, model.id, await catalog.routes_of(tx, model.id))
        return model, routes

    async def _book(
        self, org_id: UUID, routes: Sequence[catalog.Route], asking: routing.Asking,
        wanted: Callable[[Candidates], jobs.Submission], head_start: HeadStart,
    ) -> tuple[Candidates, calls.Call | jobs.Submitted]:  # fmt: skip
        """As Calls.reserve. Where nobody can be asked, what the idempotency key stands for, or ApiError 503."""
        candidates, skipped = routing.order(routes, self._api.desk.providers.keys(), asking)
        if not candidates:
            raise ApiError(503, "no_provider", endings.nobody(routing.told(skipped)).message)
        try:
            return await self._api.desk.calls.reserve(org_id, candidates, asking.tokens.all, wanted, head_start)
        except refusals.Refused as error:
            raise submission.worded(error, wanted(candidates)) from None
        except calls.NoneOpen as error:
            earlier = await self._earlier(org_id, wanted(candidates))
            if earlier is not None:
                return candidates, earlier
            wait = {"Retry-After": str(max(math.ceil(error.wait_s), 1))}
            raise ApiError(503, "provider_unavailable", MESSAGES["provider_unavailable"], headers=wait) from None

    async def _earlier(self, org_id: UUID, wanted: jobs.Submission) -> jobs.Submitted | None:
        if wanted.idempotency_key is None:
            return None
        try:
            async with self._api.db.tenant_tx(org_id) as tx:
                return await jobs.find_replayed(tx, wanted)
        except refusals.Refused as error:
            raise submission.worded(error, wanted) from None


def _model_body(model: Model) -> dict[str, Any]:
    owner = "platform" if model.org_id == PLATFORM else "organization"
    return {"id": model.name, "object": "model", "created": int(model.created_at.timestamp()), "owned_by": owner}


def _facts(asked: Asked, model: Model, most: Tokens, agreed: Terms | None) -> dict[str, Any]:
    """What the job's row says of the request: none of its words."""
    facts = {"stream": asked.stream, "choices": asked.choices, "max_tokens": most.written, "bytes": len(asked.raw)}
    if model.on_disconnect == "estimate":
        estimate_mc = pricing.tokens_mc(model, whole_estimate(asked, most))
        facts["abandoned_mc"] = estimate_mc
        if agreed is not None:
            facts["abandoned_own_mc"] = pricing.part_mc(estimate_mc, agreed["fee_percent"])
    return facts


def router(api: OpenAIApi, images: ImagesApi, audio: AudioApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/v1", tags=["openai"])
    endpoints = ChatEndpoints(api)
    for method, path, answered, name, told in (
        ("POST", "/chat/completions", endpoints.chat, "create_chat_completion", openai_docs.CHAT),
        ("POST", "/completions", endpoints.complete, "create_completion", openai_docs.COMPLETE),
        ("POST", "/embeddings", endpoints.embed, "create_embeddings", openai_docs.EMBED),
        ("POST", "/moderations", endpoints.moderate, "create_moderation", openai_docs.MODERATE),
        ("POST", "/images/generations", ImageEndpoints(images).generate, "create_images", openai_docs.GENERATE_IMAGE),
        ("POST", "/images/edits", ImageEndpoints(images).edit, "edit_images", openai_docs.EDIT_IMAGE),
        ("POST", "/images/variations", ImageEndpoints(images).vary, "vary_images", openai_docs.VARY_IMAGE),
        (
            "POST",
            "/audio/transcriptions",
            AudioEndpoints(audio).transcribe,
            "create_transcription",
            openai_docs.TRANSCRIBE,
        ),
        ("GET", "/models", endpoints.list_models, "list_model_names", openai_docs.LIST_MODELS),
        ("GET", "/models/{name:path}", endpoints.get_model, "get_model_name", openai_docs.GET_MODEL),
    ):
        routes.add_api_route(path, answered, methods=[method], name=name, **told)
    return routes
