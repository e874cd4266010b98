"""One run of one job: route, call providers, keep the outputs, settle. No transaction is open while a provider works."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.hub import catalog, outputs, pricing, routing, runs
from limner.hub.providers.base import Adapter, Blob, CallClass, ErrorKind, ProviderCall, ProviderError, ProviderResult
from limner.hub.runs import Lease, Work
from limner.kit.cpu import CpuPool
from limner.media.store import ObjectStore
from limner.telemetry import logs, metrics

STEP = "main"
CALL_TIMEOUT_S = 300.0
PROGRESS_EVERY_S = 0.5  # at most two writes a second for each job
FINISH_TRIES = 8
MAX_SENDS = 2  # class C: once, and once more after an unknown outcome
FINAL_KINDS: frozenset[ErrorKind] = frozenset({"bad_request", "content"})
log = logs.get("run")

MESSAGES = {
    "cancelled": "Cancelled while it ran.",
    "deadline_exceeded": "The job was not finished before its deadline.",
    "runs_exhausted": "Every try ended without a result.",
    "no_provider": "No provider serves this model at the moment.",
    "no_output": "The provider returned nothing that could be used.",
}


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run needs besides its lease."""

    db: Database
    adapters: Mapping[str, Adapter]
    store: ObjectStore
    pool: CpuPool
    max_runs: int
    backoff_s: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """A started run: the work, its images, and who may do it."""

    work: Work
    model_unit: pricing.PriceUnit
    images: Mapping[str, Blob]
    candidates: list[routing.Candidate]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a provider, or the run, did not deliver."""

    code: str
    message: str
    kind: ErrorKind


async def execute(resources: Resources, lease: Lease) -> None:
    """Take a claimed job to its end, or give it back. Raises refusals.StaleLease when the lease was lost."""
    if lease.exhausted is not None:
        outcome: runs.Outcome = "cancelled" if lease.exhausted == "cancelled" else "failed"
        await close(resources, lease, outcome, lease.exhausted, MESSAGES[lease.exhausted])
        return
    try:
        async with asyncio.timeout(max(lease.deadline_in_s, 0.001)) as deadline:
            await _run(resources, lease)
    except TimeoutError:
        if not deadline.expired():
            raise
        await close(resources, lease, "failed", "deadline_exceeded", MESSAGES["deadline_exceeded"])


async def _run(resources: Resources, lease: Lease) -> None:
    started = time.monotonic()
    async with resources.db.tenant_tx(lease.org_id, "limner_worker") as tx:
        prepared = await _prepare(tx, resources, lease)
    facts = {"job": lease.job_id, "org": lease.org_id, "app": lease.app_id, "run": lease.run}
    log.info("run.started", request=prepared.work.request_id, model=prepared.work.model, **facts)
    failure = Failure("no_provider", MESSAGES["no_provider"], "retryable")
    for candidate in prepared.candidates:
        answer = await _attempt(resources, lease, prepared, candidate)
        if not isinstance(answer, Failure):
            kept, result = answer
            outcome = await _succeed(resources, lease, prepared, candidate, kept, result)
            metrics.JOB_SECONDS.labels(prepared.work.model).observe(time.monotonic() - started)
            metrics.JOBS.labels(prepared.work.model, "succeeded", "").inc()
            took_ms = round((time.monotonic() - started) * 1000)
            log.info("run.finished", outcome=outcome, provider=candidate.route.provider, latency_ms=took_ms, **facts)
            return
        failure = answer
        if failure.kind in FINAL_KINDS:
            break
    await _fail_or_release(resources, lease, prepared.work.model, failure)


async def _prepare(tx: Tx, resources: Resources, lease: Lease) -> Prepared:
    work = await runs.start(tx, lease)
    has_images = any(field in work.input for field in ("images", "mask"))
    images = await runs.load_images(tx, lease.job_id) if has_images else {}
    routes = await catalog.routes_of(tx, work.model_id)
    candidates, skipped = routing.order(routes, resources.adapters)
    for skip in skipped:
        log.warning("route.skipped", job=lease.job_id, provider=skip.provider, reason=skip.reason)
    asked = int(work.input.get(pricing.MAX_OUTPUTS_FIELD, 1))
    unit: pricing.PriceUnit = "output" if work.price_hold_mc == work.unit_price_mc * asked else "job"
    return Prepared(work, unit, images, candidates)


async def _attempt(
    resources: Resources, lease: Lease, prepared: Prepared, candidate: routing.Candidate
) -> tuple[list[dict[str, Any]], ProviderResult | None] | Failure:
    """One try at one provider: the kept outputs, or why there are none."""
    route = candidate.route
    adapter = resources.adapters[route.adapter]
    intent = await _intend(resources, lease, candidate, adapter.call_class)
    if intent is None:
        return Failure("outcome_unknown", "The provider may have been paid already; it is not asked again.", "fatal")
    if intent.decision == "reuse":
        return intent.outputs or [], None
    call = _call(lease, prepared, route, intent.idem_key, _Reporter(resources.db, lease))
    began = time.monotonic()
    try:
        async with asyncio.timeout(call.timeout_s):
            result = await adapter.run(call)
        failure = None
    except ProviderError as error:
        failure = Failure(error.code, error.message, error.kind)
    except TimeoutError:
        failure = Failure("provider_timeout", f"The provider did not answer within {call.timeout_s:g} s.", "retryable")
    latency_ms = round((time.monotonic() - began) * 1000)
    kept: list[dict[str, Any]] = []
    if failure is None:
        await call.progress(95, "storing")
        kept = await outputs.keep(lease, result.outputs, resources.store, resources.pool)
        if not kept:
            failure = Failure("no_output", MESSAGES["no_output"], "retryable")
    metrics.ATTEMPTS.labels(route.provider, failure.code if failure else "done").inc()
    async with resources.db.tenant_single(lease.org_id, "limner_worker") as tx:
        if failure is not None:
            await runs.record_error(tx, lease, STEP, route.provider, intent.send_no, code=failure.code,
                                    message=failure.message, latency_ms=latency_ms)  # fmt: skip
            return failure
        cost = result.cost_micro_usd if result.cost_micro_usd is not None else route.cost_micro_usd
        await runs.record_done(tx, lease, STEP, route.provider, intent.send_no, outputs=kept, task_id=result.task_id,
                               cost_micro_usd=cost, latency_ms=latency_ms)  # fmt: skip
    return kept, result


async def _intend(
    resources: Resources, lease: Lease, candidate: routing.Candidate, call_class: CallClass
) -> runs.Intent | None:
    """The committed intent, or None when the class forbids another send after an unknown outcome."""
    route = candidate.route
    for resend in (False, True):
        async with resources.db.tenant_single(lease.org_id, "limner_worker") as tx:
            intent = await runs.intend(
                tx, lease, STEP, route.provider, route.provider_model, candidate.rule, resend=resend
            )
        if intent.decision != "uncertain":
            return intent
        if call_class is CallClass.C and intent.send_no >= MAX_SENDS:
            return None
    return None


def _call(lease: Lease, prepared: Prepared, route: catalog.Route, idem_key: str, reporter: "_Reporter") -> ProviderCall:
    named = prepared.images
    pictures = tuple(named[f"image_{n}"] for n in range(len(named)) if f"image_{n}" in named)
    return ProviderCall(
        job_id=lease.job_id,
        kind=prepared.work.kind,
        provider_model=route.provider_model,
        input=prepared.work.input,
        images=pictures,
        mask=named.get("mask"),
        config=route.config,
        idempotency_key=idem_key,
        timeout_s=min(float(route.config.get("timeout_s", CALL_TIMEOUT_S)), max(lease.deadline_in_s, 0.001)),
        progress=reporter,
    )


async def _succeed(
    resources: Resources, lease: Lease, prepared: Prepared, candidate: routing.Candidate,
    kept: list[dict[str, Any]], result: ProviderResult | None,
) -> str:  # fmt: skip
    work = prepared.work
    charge = pricing.charge_mc(work.unit_price_mc, prepared.model_unit, len(kept), work.price_hold_mc)
    cost = result.cost_micro_usd if result is not None else None
    first = {"cost_micro_usd": candidate.route.cost_micro_usd if cost is None else cost}
    kind = kept[0]["type"]
    return await settle(
        resources, lease, "succeeded", charge_mc=charge, outputs=kept, provider=candidate.route.provider,
        usage=[{"kind": kind, "quantity": len(kept), "unit": kind, **first}],
    )  # fmt: skip


async def _fail_or_release(resources: Resources, lease: Lease, model: str, failure: Failure) -> None:
    if failure.kind in FINAL_KINDS or lease.run >= resources.max_runs:
        await close(resources, lease, "failed", failure.code, failure.message)
        metrics.JOBS.labels(model, "failed", failure.code).inc()
        log.info("run.finished", job=lease.job_id, org=lease.org_id, outcome="failed", code=failure.code, run=lease.run)
        return
    delay_s = resources.backoff_s * 2 ** (lease.run - 1) * _jitter()
    await give_back(resources, lease, delay_s, counts=True, reason=failure.code)


async def close(resources: Resources, lease: Lease, outcome: runs.Outcome, code: str, message: str) -> None:
    """End a job without a result; its hold is released."""
    await settle(resources, lease, outcome, error_code=code, error_message=message)


async def give_back(resources: Resources, lease: Lease, delay_s: float, *, counts: bool, reason: str) -> None:
    """Release the job for another run."""
    async with resources.db.tenant_single(lease.org_id, "limner_worker") as tx:
        await runs.release(tx, lease, delay_s, counts=counts)
    metrics.RUNS_RELEASED.labels(reason).inc()
    log.info(
        "run.released", job=lease.job_id, org=lease.org_id, reason=reason, delay_s=round(delay_s, 2), counts=counts
    )


async def settle(resources: Resources, lease: Lease, outcome: runs.Outcome, **facts: Any) -> str:
    """Finish, and once more with the same fence when the answer of the commit was lost.

    Raises refusals.StaleLease, and DatabaseUnavailable when the database stays away (the lease then runs out).
    """
    for attempt in range(FINISH_TRIES):
        try:
            async with resources.db.tenant_single(lease.org_id, "limner_worker") as tx:
                return await runs.finish(tx, lease, outcome, **facts)
        except (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnavailable) as error:
            log.warning("finish.retried", job=lease.job_id, error=type(error).__name__)
            if attempt == FINISH_TRIES - 1:
                raise
            await asyncio.sleep(min(0.1 * 2**attempt, 2))
    raise AssertionError


def _jitter() -> float:
    """0.8 to 1.2, from the clock's low digits: enough to keep retries apart."""
    return 0.8 + (time.monotonic_ns() // 1000 % 4001) / 10_000


class _Reporter:
    """Writes progress, at most twice a second."""

    def __init__(self, db: Database, lease: Lease) -> None:
        self._db = db
        self._lease = lease
        self._last = -PROGRESS_EVERY_S

    async def __call__(self, percent: int, stage: str) -> None:
        now = time.monotonic()
        if now - self._last < PROGRESS_EVERY_S:
            return
        self._last = now
        try:
            async with self._db.system_tx("limner_dispatch", "progress stands in the queue row: no payload") as tx:
                await runs.report(tx, self._lease, percent, stage)
        except (psycopg.Error, DatabaseUnavailable):
            return  # progress is a courtesy; the run goes on
