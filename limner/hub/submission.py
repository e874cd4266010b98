"""From a request body to an accepted job: parse once, price what was parsed, submit what was priced."""

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from uuid import UUID

import orjson
import psycopg
from starlette.requests import Request

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.wake import Waker
from limner.hub import catalog, inputs, jobs, pricing
from limner.hub.intake import Intake
from limner.hub.providers.base import Blob
from limner.hub.schema import ENVELOPE, InputSchema
from limner.kit import money
from limner.kit.cpu import CpuPool
from limner.ledger import refusals
from limner.web import parsing
from limner.web.caller import Caller, Quotas
from limner.web.errors import ApiError, invalid

ROUTE = "generate"
WAIT_CACHE_S = 10.0
WAIT_ENTRIES = 10_000
LARGEST_SHARED = 16_384
"""Bytes of a request: a longer one gets a commit of its own, so that it delays nobody else's."""


@dataclass(frozen=True, slots=True)
class SubmitLimits:
    """What a submission is held to: image bounds, runs a job, how many may wait for the database, jobs a minute (0: any)."""

    images: inputs.ImageLimits
    max_runs: int
    backlog: int
    user_per_min: int
    app_per_min: int

    def of(self, quotas: Quotas) -> jobs.Limits:
        """What holds for a caller: its own quotas before the installation's."""
        return jobs.Limits(
            quotas.user_per_min or self.user_per_min or None,
            quotas.app_per_min or self.app_per_min or None,
            quotas.org_per_min,
            quotas.max_open,
        )


class Submitter:
    """Takes `POST /api/v1/generate` requests of authenticated callers."""

    def __init__(self, db: Database, models: catalog.ModelCache, pool: CpuPool, limits: SubmitLimits) -> None:
        self._db = db
        self._models = models
        self._pool = pool
        self._limits = limits
        self._envelope = InputSchema(ENVELOPE)
        self._waits: dict[tuple[UUID, str], tuple[float, int]] = {}
        self._measuring: set[asyncio.Task[None]] = set()
        self._intake = Intake(db, limits.backlog)
        self.waker = Waker(db, "limner_api")

    async def submit(self, request: Request, caller: Caller) -> tuple[jobs.Submitted, str]:
        """The accepted job and its model's name. Raises ApiError; nothing is stored or charged then."""
        external_id = _payer(caller)
        body = await parsing.json_object(request)
        envelope = self._envelope.parse(body)
        key = parsing.idempotency_key(request, envelope.pop("idempotency_key", None))
        if "webhook_url" in envelope:
            raise ApiError(400, "webhooks_not_available", "Webhooks are not available yet: read the job instead.",
                           details={"/webhook_url": ["is not available yet"]})  # fmt: skip
        model = await self._model(caller.org_id, envelope["model"])
        parsed = model.schema.parse(envelope["input"])
        hold_mc = pricing.quote_mc(model.row.price_mc, model.row.price_unit, parsed)
        recorded = parsed
        blobs: list[tuple[str, Blob]] = []
        if any(field in parsed for field in inputs.FIELDS):
            recorded, blobs = await inputs.take(parsed, self._limits.images, self._pool)
        # of an image its SHA-256 goes in: the same bytes are the same request
        hashed = {"model": model.row.name, "input": recorded, "priority": envelope["priority"]}
        canonical = orjson.dumps(hashed, option=orjson.OPT_SORT_KEYS)
        limits = self._limits.of(caller.quotas)
        submission = jobs.Submission(
            app_id=caller.app_id,
            external_id=external_id,
            route=ROUTE,
            model_id=model.row.id,
            model=model.row.name,
            kind=model.row.kind,
            unit_price_mc=model.row.price_mc,
            hold_mc=hold_mc,
            priority=envelope["priority"],
            idempotency_key=key,
            request_hash=hashlib.sha256(canonical).digest(),
            input=recorded,
            images=blobs,
            wait_s=self._wait_s(caller, model.row),
            deadline_s=model.row.deadline_s,
            max_runs=self._limits.max_runs,
            request_id=request.state.request_id,
            traceparent=parsing.traceparent(request),
            limits=limits,
        )
        # what the shared statement does not count, or would wait for
        alone = (
            bool(blobs)
            or len(canonical) > LARGEST_SHARED
            or limits.org_per_min is not None
            or limits.max_open is not None
        )
        submitted = await self._store(caller.org_id, submission, alone=alone)
        request.state.log |= {"job": submitted.job_id, "model": model.row.name}
        self.waker.wake()
        return submitted, model.row.name

    async def _store(self, org_id: UUID, submission: jobs.Submission, alone: bool) -> jobs.Submitted:
        try:
            return await self._intake.submit(org_id, submission, alone=alone)
        except refusals.TooFewCredits as error:
            raise too_few_credits(error) from None
        except refusals.Inactive:
            raise ApiError(403, "user_inactive", "This user is deactivated.") from None
        except refusals.TooMany as error:
            raise too_many(error) from None
        except refusals.Reused:
            raise ApiError(422, "idempotency_key_reused",
                           "This idempotency key was used for another request.") from None  # fmt: skip

    async def _model(self, org_id: UUID, name: str) -> catalog.CompiledModel:
        compiled = self._models.find(org_id, name)
        if compiled is None:
            async with self._db.tenant_tx(org_id) as tx:
                row = await catalog.find_model(tx, name)
            if row is None:
                raise ApiError(404, "model_not_found", "There is no such model; GET /api/v1/models lists them.")
            compiled = self._models.put(org_id, row)
        return compiled

    def _wait_s(self, caller: Caller, model: catalog.Model) -> int:
        """What this app's last jobs of the model took, measured at most every ten seconds; the catalog's figure before."""
        key = (caller.app_id, model.name)
        known = self._waits.get(key)
        if known is None or known[0] < time.monotonic():
            estimate = known[1] if known else math.ceil(model.expected_s)
            if len(self._waits) >= WAIT_ENTRIES:
                self._waits.clear()
            self._waits[key] = (time.monotonic() + WAIT_CACHE_S, estimate)
            task = asyncio.create_task(self._measure(caller, model, key))
            self._measuring.add(task)
            task.add_done_callback(self._measuring.discard)
            return estimate
        return known[1]

    async def _measure(self, caller: Caller, model: catalog.Model, key: tuple[UUID, str]) -> None:
        try:
            async with self._db.tenant_tx(caller.org_id) as tx:
                mean = await jobs.mean_wait_s(tx, caller.app_id, model.name)
        except (DatabaseUnavailable, psycopg.Error):
            return
        if mean is not None:
            self._waits[key] = (time.monotonic() + WAIT_CACHE_S, max(1, math.ceil(mean)))


def _payer(caller: Caller) -> str | None:
    """Who pays: the end user, or, with the scope `org:spend` only, the organization itself."""
    caller.require("jobs:create")
    if caller.external_id is None and "org:spend" not in caller.scopes:
        raise invalid({"/X-User-ID": ["is required"]}, "missing_user", "Say which user this is for: send X-User-ID.")
    return caller.external_id


def too_few_credits(error: refusals.TooFewCredits) -> ApiError:
    """402 with what there is and what it takes, in whole credits (rounded down, rounded up)."""
    code = "insufficient_tokens" if error.wallet == "end_user" else "insufficient_organization_tokens"
    return ApiError(
        402, code, "Insufficient tokens." if error.wallet == "end_user" else "The organization has too few tokens.",
        extra={"balance": money.whole(error.balance_mc), "required": -money.whole(-error.required_mc)},
    )  # fmt: skip


def too_many(error: refusals.TooMany) -> ApiError:
    """429 that names the limit, its size and when to come again."""
    wait_s = math.ceil(error.retry_after_s)
    if error.limit == "open_jobs":
        message = f"The organization has its {error.size} open jobs already: wait until some are done."
    else:
        message = f"More than {error.size} jobs a minute for this {error.limit}: try again in {wait_s} s."
    return ApiError(
        429, "rate_limited", message, extra={"limit": error.limit, "limit_size": error.size, "retry_after": wait_s},
        headers={"retry-after": str(wait_s)},
    )  # fmt: skip
