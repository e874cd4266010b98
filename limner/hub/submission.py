"""From a request body to an accepted job: parse once, price what was parsed, submit what was priced."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

import orjson
from starlette.requests import Request

from limner.db.pools import Database
from limner.db.wake import Waker
from limner.egress.answers import DestinationNotAllowed
from limner.egress.destinations import Destinations
from limner.hub import ai_settings, audio_inputs, catalog, dry_run, inputs, jobs, limits, pricing, terms
from limner.hub.ai_settings import AiSettings
from limner.hub.inputs import ImageInputs
from limner.hub.intake import Intake
from limner.hub.limits import SubmitLimits
from limner.hub.pricing import Tokens
from limner.hub.providers import texts
from limner.hub.providers.base import Blob
from limner.hub.remembered import CompiledModel, ModelCache
from limner.hub.schema import BY_KIND, ENVELOPE, InputSchema
from limner.hub.waits import Order, WaitEstimates
from limner.kit import money
from limner.ledger import refusals
from limner.tenancy import end_users
from limner.web import parsing, preferences
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid, not_found

ROUTE = "generate"
NO_FILES: Mapping[str, bytes] = MappingProxyType({})
LARGEST_SHARED = 16_384
"""Bytes of a request: a longer one gets a commit of its own, so that it delays nobody else's."""


def _no_digest(_: Mapping[str, Any]) -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class Accepted:
    """`headers` tell what is left of the limits."""

    submitted: jobs.Submitted
    model: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Common:
    """What an order's body says beside its input, once for all items where it is a batch's. `asked_s`: the deadline it asks for."""

    caller: Caller
    priority: int
    run_at: datetime | None
    ahead_s: float
    asked_s: int | None
    limits: jobs.Limits
    request_id: str
    traceparent: str | None
    idempotency_key: str | None = None
    webhook_url: str | None = None


class Submitter:
    """Takes `POST /api/v1/generate` requests of authenticated callers."""

    def __init__(
        self,
        db: Database,
        models: ModelCache,
        images: ImageInputs,
        destinations: Destinations,
        limits: SubmitLimits,
    ) -> None:
        self._db = db
        self._destinations = destinations
        self._models = models
        self.images = images
        self.limits = limits
        self._envelope = InputSchema(ENVELOPE)
        self._by_kind = InputSchema(BY_KIND)
        self._settings = ai_settings.SettingsCache()
        self.waits = WaitEstimates(db)
        self.intake = Intake(db, limits.backlog)
        self.waker = Waker(db, "limner_api")

    async def submit(
        self,
        request: Request,
        caller: Caller,
        body: dict[str, Any] | None = None,
        files: Mapping[str, bytes] = NO_FILES,
    ) -> Accepted:
        """Accept a job, or find the one its idempotency key stands for. Raises ApiError; nothing is stored or charged then.

        `body`: what another endpoint orders in its caller's name; without it the request's own. `files`: pictures that came beside
        it, by the text that stands for each in its input.
        """
        submission, shared = await self._read(request, caller, body, files)
        submitted = await self._store(caller.org_id, submission, alone=not shared)
        request.state.log |= {"job": submitted.job_id, "model": submission.model}
        self.waker.wake()
        return Accepted(submitted, submission.model, limits.headers(submission.limits, submitted, self._db.clock.now()))

    async def try_out(self, request: Request, caller: Caller) -> tuple[jobs.Submission, dry_run.Foreseen]:
        """What `submit` would do. Raises what it raises, but for limits and idempotency; and 404 for an unknown end user."""
        submission, _ = await self._read(request, caller)
        try:
            async with self._db.tenant_tx(caller.org_id) as tx:
                return submission, await dry_run.foresee(tx, submission)
        except end_users.UserNotFound:
            raise not_found("user") from None
        except (refusals.TooFewCredits, refusals.Inactive) as error:
            raise worded(error, submission) from None

    async def _read(
        self,
        request: Request,
        caller: Caller,
        body: dict[str, Any] | None = None,
        files: Mapping[str, bytes] = NO_FILES,
    ) -> tuple[jobs.Submission, bool]:
        """The request as parsed, priced and hashed, and whether it may share a commit. Raises ApiError."""
        payer(caller)
        body = await parsing.json_object(request) if body is None else body
        envelope = (self._by_kind if "kind" in body and "model" not in body else self._envelope).parse(body)
        key = parsing.idempotency_key(request, envelope.pop("idempotency_key", None))
        webhook_url = envelope.get("webhook_url")
        if webhook_url is not None:
            self.check_webhook(webhook_url)
        common = self.common(request, caller, envelope, idempotency_key=key, webhook_url=webhook_url)
        model, tone = await self._ordered(caller.org_id, envelope)
        # of an order by kind, what was said counts: neither the tone nor the model of this moment makes it another one
        what = model.row.name if tone is None else {"kind": envelope["kind"]}
        canonical = b""

        def digest(said: Mapping[str, Any]) -> bytes:
            nonlocal canonical
            canonical = _canonical(what, said, common)
            return hashlib.sha256(canonical).digest()

        submission = await self.order(common, model, envelope["input"], tone=tone, files=files, digest=digest)
        alone = submission.images or common.limits.count_alone or len(canonical) > LARGEST_SHARED
        return submission, not alone

    def common(
        self, request: Request, caller: Caller, envelope: Mapping[str, Any], *, idempotency_key: str | None = None,
        webhook_url: str | None = None,
    ) -> Common:  # fmt: skip
        """Of the body's envelope, and of the headers; the key and the URL where they are each job's own. Raises ApiError."""
        run_at = parsing.moment_at("/run_at", envelope["run_at"]) if "run_at" in envelope else None
        return Common(
            caller, envelope["priority"], run_at, self._ahead_s(run_at), preferences.cancel_after_s(request),
            self.limits.of(caller.quotas, for_user=caller.external_id is not None), request.state.request_id,
            parsing.traceparent(request), idempotency_key, webhook_url,
        )  # fmt: skip

    async def order(
        self, common: Common, model: CompiledModel, given: Mapping[str, Any], *, tone: str | None = None,
        files: Mapping[str, bytes] = NO_FILES, digest: Callable[[Mapping[str, Any]], bytes] = _no_digest,
    ) -> jobs.Submission:  # fmt: skip
        """A job of this input, priced; `digest`: of what was said, and for what came as bytes of their names. Raises ApiError."""
        row = model.row
        if row.kind in texts.BY_CALLS:
            raise invalid({"/model": ["takes no jobs: POST /v1/moderations"]}, "model_not_supported")
        said = parsed_by(model, given)
        parsed, agreed = terms.of_order(said, model, tone)
        price_mc = foreseen_mc(row, given, parsed)
        recorded = parsed
        blobs: list[tuple[str, Blob]] = []
        if any(field in parsed for field in inputs.FIELDS):
            recorded, blobs = await self.images.take(common.caller, parsed, files)
        deadline_s = row.deadline_s if common.asked_s is None else min(common.asked_s, row.deadline_s)
        line = Order(common.caller.org_id, common.caller.app_id, row.name, common.priority)
        return jobs.Submission(
            app_id=common.caller.app_id,
            external_id=common.caller.external_id,
            route=ROUTE,
            model_id=row.id,
            model=row.name,
            kind=row.kind,
            unit_price_mc=row.price_mc,
            hold_mc=terms.hold_mc(self._timed_mc(row, recorded, price_mc), agreed),
            token_prices=pricing.kept_with_orders(row),
            priority=common.priority,
            idempotency_key=common.idempotency_key,
            request_hash=digest(said if recorded is parsed else recorded),
            input=recorded,
            images=blobs,
            wait_s=math.ceil(common.ahead_s) + await self.waits.get(line, row.expected_s),
            deadline_s=deadline_s,
            cancel_after_s=None if common.asked_s is None else deadline_s,
            max_runs=self.limits.max_runs,
            request_id=common.request_id,
            traceparent=common.traceparent,
            run_at=common.run_at if common.ahead_s else None,
            limits=common.limits,
            webhook_url=common.webhook_url,
            terms=agreed,
        )

    def check_webhook(self, webhook_url: str) -> None:
        """Raises ApiError 400 for a URL that nothing would ever be sent to."""
        try:
            self._destinations.check(webhook_url)
        except DestinationNotAllowed as error:
            raise invalid({"/webhook_url": [str(error)]}, error.code, "Nothing is sent to this URL.") from None

    def _ahead_s(self, run_at: datetime | None) -> float:
        """Seconds until then by the database's clock, 0 for what is past. Raises ApiError 400 for what is too far."""
        if run_at is None:
            return 0
        ahead_s = run_at.timestamp() - self._db.clock.now()
        if ahead_s > self.limits.max_run_at_s:
            raise invalid({"/run_at": [f"must not be more than {self.limits.max_run_at_s} seconds ahead"]})
        return max(0, ahead_s)

    async def _store(self, org_id: UUID, submission: jobs.Submission, alone: bool) -> jobs.Submitted:
        try:
            return await self.intake.submit(org_id, submission, alone=alone)
        except refusals.Refused as error:
            raise worded(error, submission) from None

    async def model(self, org_id: UUID, name: str) -> CompiledModel:
        """What is sold under this name. Raises ApiError 404."""
        compiled = self._models.find(org_id, name)
        if compiled is None:
            async with self._db.tenant_tx(org_id) as tx:
                found = await catalog.find_sold(tx, name)
            if found is None:
                raise ApiError(404, "model_not_found", "There is no such model; GET /api/v1/models lists them.")
            compiled = self._models.put(org_id, *found)
        return compiled

    async def settings(self, org_id: UUID) -> AiSettings:
        """The organization's own, at most ten seconds old."""
        found = self._settings.find(org_id, "")
        if found is None:
            async with self._db.tenant_tx(org_id) as tx:
                found = self._settings.put(org_id, await ai_settings.get(tx))
        return found

    async def _ordered(self, org_id: UUID, envelope: Mapping[str, Any]) -> tuple[CompiledModel, str | None]:
        """The model, and, where its choice was left to the organization's settings, their tone. Raises ApiError 400 and 404."""
        if "model" in envelope:
            return await self.model(org_id, envelope["model"]), None
        settings = await self.settings(org_id)
        name = settings.default_models.get(envelope["kind"])
        if name is None:
            raise invalid({"/kind": ["has no default model here: name a model"]}, "no_default_model")
        return await self.model(org_id, name), settings.tone

    def _timed_mc(self, model: catalog.Model, recorded: Mapping[str, Any], price_mc: int) -> int:
        """What is held for a model that is sold by time; `price_mc` for every other."""
        if model.price_unit not in pricing.BY_TIME:
            return price_mc
        seconds = audio_inputs.seconds(recorded, self.images.recordings)
        return pricing.time_mc(model.price_mc, model.price_unit, seconds)


def parsed_by(model: CompiledModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The input with defaults. Raises ApiError 400, which says what the model can do where it was asked for something else."""
    try:
        return model.schema.parse(given)
    except ApiError as error:
        known = model.row.input_schema.get("properties", {})
        if all(name in known for name in given):
            raise
        words = f"Invalid input: {model.row.name} is a model of {model.row.kind} and takes {', '.join(sorted(known))}."
        raise ApiError(error.status, error.code, words, details=error.details) from None


def foreseen_mc(model: catalog.Model, given: Mapping[str, Any], parsed: dict[str, Any]) -> int:
    """What is held: the most that the request can cost. Raises ApiError 400 for a longer answer than the model gives."""
    if model.price_unit != "tokens":
        return pricing.quote_mc(model.price_mc, model.price_unit, parsed)
    try:
        longest = texts.longest(model.kind, model, given, parsed)
    except ValueError as error:
        raise invalid({"/input/max_tokens": [str(error)]}) from None
    if "max_tokens" in parsed:
        parsed["max_tokens"] = longest
    return pricing.tokens_mc(model, Tokens(texts.bound(parsed), 0, longest))


def payer(caller: Caller) -> str | None:
    """Who pays: the end user, or, with the scope `org:spend` only, the organization itself."""
    caller.require("jobs:create")
    if caller.external_id is None and "org:spend" not in caller.scopes:
        raise invalid({"/X-User-ID": ["is required"]}, "missing_user", "Say which user this is for: send X-User-ID.")
    return caller.external_id


def for_its_user(caller: Caller, user: Any) -> Caller:
    """The caller for the user that a body's `user` names, where its app says so. Raises ApiError 400."""
    if caller.external_id is not None or not caller.body_users or user is None:
        return caller
    if not isinstance(user, str) or not end_users.valid_external_id(user):
        raise invalid({"/user": ["must be 1 to 255 printable characters"]}, "invalid_user")
    return replace(caller, external_id=user)


def _canonical(model: str | dict[str, str], said: Mapping[str, Any], common: Common) -> bytes:
    """What makes two requests the same. Of an image its SHA-256 goes in: the same bytes are the same request."""
    hashed: dict[str, Any] = {"model": model, "input": said, "priority": common.priority}
    if common.run_at is not None:
        hashed["run_at"] = common.run_at
    if common.webhook_url is not None:
        hashed["webhook_url"] = common.webhook_url
    if common.asked_s is not None:
        hashed["cancel_after_s"] = common.asked_s
    return orjson.dumps(hashed, option=orjson.OPT_SORT_KEYS)


def worded(error: refusals.Refused, submission: jobs.Submission) -> Exception:
    """The refusal as this surface tells it; one that is none of its own as it is."""
    match error:
        case refusals.TooFewCredits():
            return too_few_credits(error)
        case refusals.Inactive():
            return ApiError(403, "user_inactive", "This user is deactivated.")
        case refusals.TooMany():
            return limits.too_many(error, submission.limits)
        case refusals.Reused():
            return ApiError(422, "idempotency_key_reused", "This idempotency key was used for another request.")
    return error


def too_few_credits(error: refusals.TooFewCredits) -> ApiError:
    """402 with what there is, what it takes and what is owed, in whole credits (rounded down, up, up)."""
    code = "insufficient_tokens" if error.wallet == "end_user" else "insufficient_organization_tokens"
    message = "Insufficient tokens." if error.wallet == "end_user" else "The organization has too few tokens."
    facts = {"balance": money.whole(error.balance_mc), "required": -money.whole(-error.required_mc)}
    if error.owed_mc > 0:
        message = "Tokens are owed here: nothing is spent until they are made good."
        facts["owed"] = -money.whole(-error.owed_mc)
    return ApiError(402, code, message, extra=facts)
