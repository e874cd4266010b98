"""One run of one job: route, call providers, keep the outputs, and say how it ends. No transaction is open while a provider works.

A run has two halves. `decide` may be told to stop at any moment until a provider's result is there; it writes
attempts and nothing else. `end` settles the hold or gives the job back; it is never interrupted, and insists
while the database is away. Between the two stands an `Ending`, so that whatever goes wrong has one way out.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import psycopg

from limner.db.pools import AWAY, Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.hub import accepted, asking, catalog, endings, key_news, outputs, pricing, routing, runs, stated, terms
from limner.hub.endings import MESSAGES, Ending, Failure, Finish, Kept, Release
from limner.hub.gates import Gates, Passage
from limner.hub.health import NO_BREAKER, BreakerSettings
from limner.hub.hooks import Hooks
from limner.hub.imports import ImportFailed, Imports
from limner.hub.progress import NOBODY, News, ProgressBoard
from limner.hub.providers.base import Adapter, Blob, CallClass, ProviderCall, ProviderResult, TaskAdapter
from limner.hub.remembered import RouteCache
from limner.hub.runs import Delivery, Lease, Work
from limner.hub.sharing import SharedWrites
from limner.kit.cpu import CpuPool
from limner.ledger import refusals
from limner.media.store import ObjectStore, StoreUnavailable
from limner.telemetry import logs, metrics

STEP = "main"
ROLE = "limner_worker"
PATIENCE_S = 60.0  # how long a write that must not be lost waits for the database
MAX_SENDS = 2  # class C: once, and once more after an unknown outcome
MAX_OUTPUTS = 16  # kept of a call whose request names no number
EXPIRED_CONTEXT = "LM001"
Phase = Literal["preparing", "calling", "keeping", "ending"]
T = TypeVar("T")
log = logs.get("run")
finished = logs.FrequentLine("run", "run.finished")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run needs besides its lease."""

    db: Database
    adapters: Mapping[str, Adapter]
    store: ObjectStore
    pool: CpuPool
    max_runs: int
    backoff_s: float
    shared: SharedWrites
    routes: RouteCache
    progress: ProgressBoard
    news: News
    imports: Imports
    gates: Gates
    keys: key_news.KeyNews
    hooks: Hooks | None = None


def resources(
    db: Database, adapters: Mapping[str, Adapter], store: ObjectStore, pool: CpuPool, max_runs: int, backoff_s: float,
    imports: Imports, news: News = NOBODY, *, breaker: BreakerSettings = NO_BREAKER, hooks: Hooks | None = None,
) -> Resources:  # fmt: skip
    """One process's resources, with a batch of its own for what shares a commit."""
    shared, routes, progress = SharedWrites(db), RouteCache(), ProgressBoard(db, news)
    gates, keys = Gates(db, breaker), key_news.KeyNews(db)
    return Resources(
        db, adapters, store, pool, max_runs, backoff_s, shared, routes, progress, news, imports, gates, keys, hooks
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A started run: the work, its images and who may do it."""

    work: Work
    images: Mapping[str, Blob]
    candidates: list[routing.Candidate]
    asked: routing.Asking
    answered: Mapping[str, bool]
    left_out: str


class Run:
    """One claimed job on its way from lease to ending. `lingers`: nobody waits for its end."""

    def __init__(self, resources: Resources, lease: Lease) -> None:
        self.lease = lease
        self.phase: Phase = "preparing"
        self.lingers = False
        self._resources = resources
        self._db = resources.db
        self._model = "unknown"
        self._tasks = False  # a provider that works on tasks was asked
        self._began = time.monotonic()
        self._deadline = self._began + lease.deadline_in_s
        self._facts = {"job": lease.job_id, "org": lease.org_id, "app": lease.app_id, "run": lease.run}

    @property
    def may_stop(self) -> bool:
        """False once a result is there: it is kept and settled, whoever asks to stop."""
        return self.phase in {"preparing", "calling"}

    async def decide(self) -> Ending:
        """Work on the job until it is clear how the run ends. Raises refusals.StaleLease when the lease was lost."""
        if self.lease.exhausted is not None:
            return await self._exhausted(self.lease.exhausted)
        try:
            prepared = await self._prepare()
        except ImportFailed as failed:
            return self._without_result([Failure(failed.code, failed.message, failed.kind)])
        work = prepared.work
        log.info("run.started", request=work.request_id, model=work.model, **self._facts)
        failures: list[Failure] = []
        before: list[tuple[str, str]] = []
        for candidate in prepared.candidates:
            if self._remaining_s() <= 0:
                break
            answer = await self._attempt(prepared, routing.after(candidate, before))
            self._resources.keys.tell(candidate.route.own_key, getattr(answer, "code", None))
            if isinstance(answer, Kept):
                return endings.success(work, terms.applied(answer, candidate.route, work.terms))
            failures.append(answer)
            before.append((candidate.route.provider, answer.passed))
            if not endings.goes_on(work.kind, answer, candidate.route.next_on):
                break
        if self._remaining_s() <= 0:
            return Finish("failed", "deadline_exceeded", MESSAGES["deadline_exceeded"])
        if not prepared.candidates:
            failures.append(endings.nobody(prepared.left_out))
        return self._without_result(failures)

    async def end(self, ending: Ending) -> None:
        """Settle or give back: one commit, sent again when its answer was lost.

        Raises refusals.StaleLease, and DatabaseUnavailable or psycopg.OperationalError when the database stays
        away (the lease then runs out, and the next run takes over what this one recorded).
        """
        self.phase = "ending"
        self._resources.progress.forget(self.lease)
        if isinstance(ending, Release):
            await self._release(ending)
            return
        await self._finish(ending)
        if ending.outcome != "succeeded" and (self.lease.fence > 1 or self._tasks):
            await accepted.call_off(self._db, self._resources.adapters, self.lease)

    def stopped(self, why: str) -> Ending | None:
        """How a run ends that was told to stop: cancel, shutdown, silent (no heartbeat got through), or lost.

        A lost job is somebody else's: write nothing. A silent run does not know whose the job is; the fence does.
        """
        if why == "cancel":
            return Finish("cancelled", "cancelled", MESSAGES["cancelled"])
        if why == "shutdown":
            return Release(0, counts=False, reason="shutdown")
        return self.without_database() if why == "silent" else None

    def without_database(self) -> Ending:
        """The database was away: nobody's fault that would use up a run."""
        return Release(self._resources.backoff_s, counts=False, reason="database_away")

    def crashed(self) -> Ending:
        """Our own mistake: tried again as long as runs last."""
        if self.lease.run >= self._resources.max_runs:
            return Finish("failed", "internal_error", MESSAGES["internal_error"])
        return Release(self._backoff_s(), counts=True, reason="crash")

    async def _exhausted(self, code: str) -> Ending:
        async def name(tx: Tx) -> str:
            return await runs.model_of(tx, self.lease.job_id)

        self._model = await self._insist("read", name, single=False)
        if code == "runs_exhausted" and (
            ending := await self._insist("read", lambda tx: runs.abandoned(tx, self.lease), single=False)
        ):
            return ending
        return Finish("cancelled" if code == "cancelled" else "failed", code, MESSAGES[code])

    async def _prepare(self) -> Prepared:
        work = await self._resources.shared.start(self.lease)
        if work is None:

            async def start(tx: Tx) -> Work:
                return await runs.start(tx, self.lease)

            work = await self._insist("start", start)
        self._resources.news.committed()
        self._model = work.model
        images: dict[str, Blob] = {}
        if any(field in work.input for field in ("images", "mask", "audio")):

            async def load(tx: Tx) -> dict[str, Blob]:
                return await runs.load_images(tx, self.lease.job_id)

            images = await self._insist("load", load, single=False) | await self._resources.imports.fetch_all(
                work.input
            )
        routes = self._resources.routes.find(self.lease.org_id, work.model_id)
        if routes is None:
            read = await self._insist("read", lambda tx: catalog.routes_of(tx, work.model_id), single=False)
            routes = self._resources.routes.put(self.lease.org_id, work.model_id, read)
        asked, own_only = routing.asking(self.lease.job_id, work.kind, work.input), terms.own_only(work.terms)
        candidates, skipped = routing.order(routes, self._resources.adapters, asked, own_only=own_only)
        for skip in skipped:
            log.warning("route.skipped", job=self.lease.job_id, provider=skip.provider, reason=skip.reason)
        answered: dict[str, bool] = {}
        if self.lease.fence > 1:  # what an earlier run has got needs no leave to ask
            answered = await self._insist("look", lambda tx: runs.answered(tx, self.lease.job_id), single=False)
        left_out = routing.told(skipped)
        return Prepared(work, images, accepted.first(candidates, answered), asked, answered, left_out)

    async def _attempt(self, prepared: Prepared, candidate: routing.Candidate) -> Kept | Failure:
        """One try at one provider: the kept outputs, or why there are none."""
        route = candidate.route
        timeout_s = routing.timeout_s(route)
        if timeout_s is None:
            words = MESSAGES["provider_misconfigured"]
            return Failure("provider_misconfigured", words, "fatal", passed="was misconfigured (timeout_s)")
        free = route.provider in prepared.answered
        passage = await self._resources.gates.enter(route, prepared.asked.tokens.all, free=free)
        if isinstance(passage, Failure):
            metrics.ATTEMPTS.labels(route.provider, passage.code).inc()
            return passage
        with passage:
            return await self._call_provider(prepared, candidate, timeout_s, passage)

    async def _call_provider(
        self, prepared: Prepared, candidate: routing.Candidate, timeout_s: float, passage: Passage
    ) -> Kept | Failure:
        route = candidate.route
        adapter = self._resources.adapters[route.adapter]
        resumes = isinstance(adapter, TaskAdapter)
        intent = await self._intend(candidate, adapter.call_class, resumes=resumes)
        if isinstance(intent, Failure):
            metrics.ATTEMPTS.labels(route.provider, intent.code).inc()
            return intent
        if intent.decision == "reuse":
            return Kept(intent.outputs or [], route.provider, intent.cost_micro_usd)
        task = accepted.Record(self._insist, self.lease, STEP, route.provider, intent, self._resources.hooks)
        call = self._call(prepared, route, min(timeout_s, max(self._remaining_s(), 0.001)), task)
        self._tasks |= resumes
        began = time.monotonic()
        self.phase = "calling"
        result = await passage.send() or await asking.ask(adapter, call, route, self._facts)
        self.phase = "keeping"
        latency_ms = round((time.monotonic() - began) * 1000)
        answer = result if isinstance(result, Failure) else await self._keep(prepared.work, route, call, result)
        outcome = answer.code if isinstance(answer, Failure) else "done"
        metrics.of(metrics.ATTEMPTS, route.provider, outcome).inc()
        if isinstance(answer, Failure):
            await passage.end(answer)
            await self._record(route.provider, intent.send_no, answer, latency_ms, task.stands(answer))
            self.phase = "preparing"
            return answer
        used = endings.stated_tokens(answer.usage)
        await passage.end(tokens=used.all if used else None)
        reference = task.reference(result)
        delivery = Delivery(STEP, route.provider, intent.send_no, reference, answer.cost_micro_usd, latency_ms)
        return replace(answer, delivery=delivery)

    async def _intend(
        self, candidate: routing.Candidate, call_class: CallClass, *, resumes: bool = False
    ) -> runs.Intent | Failure:
        """The committed intent, or a failure: no place there, or another send forbidden after an unknown outcome."""
        route = candidate.route
        shared = await self._resources.shared.intend(self.lease, STEP, **candidate.asked)
        if shared is not None:
            return shared
        for resend in (False, True):
            async with self._db.tenant_single(self.lease.org_id, ROLE) as tx:
                intent = await runs.intend(tx, self.lease, STEP, **candidate.asked, resend=resend)
            if intent.decision == "full":
                return endings.FULL
            if intent.decision in {"send", "reuse"} or (resumes and intent.decision == "resume"):
                if resend:
                    metrics.RESENDS.labels(route.provider, call_class).inc()
                    log.warning("provider.resent", provider=route.provider, call_class=call_class, **self._facts)
                return intent
            if intent.decision == "resume" or (call_class is not CallClass.A and intent.send_no >= MAX_SENDS):
                break
        return Failure("outcome_unknown", MESSAGES["outcome_unknown"], "fatal", known=False)

    def _call(self, prepared: Prepared, route: catalog.Route, timeout_s: float, task: accepted.Record) -> ProviderCall:
        named = prepared.images
        return ProviderCall(
            job_id=self.lease.job_id, kind=prepared.work.kind, provider_model=route.provider_model, input=prepared.work.input,
            images=tuple(named[f"image_{n}"] for n in range(len(named)) if f"image_{n}" in named), mask=named.get("mask"),
            audio=named.get("audio"), config=route.config, idempotency_key=task.idem_key, timeout_s=timeout_s,
            progress=partial(self._resources.progress.note, self.lease), base_url=route.base_url, own_key=route.own_key,
            task_id=task.id, accepted=task.accept, hook=task.hook,
        )  # fmt: skip

    async def _keep(
        self, work: Work, route: catalog.Route, call: ProviderCall, result: ProviderResult
    ) -> Kept | Failure:
        limit = int(work.input.get(pricing.MAX_OUTPUTS_FIELD, MAX_OUTPUTS))
        bill = stated.bill(result, route, self._facts)
        await call.progress(95, "storing")
        try:
            kept = await outputs.keep(self.lease, result.outputs[:limit], self._resources.store, self._resources.pool)
        except StoreUnavailable as error:
            log.error("store.unavailable", error=str(error), **self._facts)  # noqa: TRY400  (known, no traceback)
            return Failure("store_unavailable", MESSAGES["store_unavailable"], "retryable", stops=True,
                           cost_micro_usd=bill.of_failure)  # fmt: skip
        except Exception:
            log.exception("adapter.crashed", adapter=route.adapter, **self._facts)
            return Failure("adapter_error", MESSAGES["adapter_error"], "retryable", cost_micro_usd=bill.of_failure)
        if not kept:
            return Failure("no_output", MESSAGES["no_output"], "retryable", cost_micro_usd=bill.of_failure)
        return Kept(kept, route.provider, bill.cost_micro_usd, usage=bill.usage)

    async def _record(
        self, provider: str, send_no: int, failure: Failure, latency_ms: int, stands: bool = False
    ) -> None:
        """Write how a call failed. An answer lost on the way is no loss: the fence is compared again at the end."""

        async def write(tx: Tx) -> bool:
            await runs.record_error(tx, self.lease, STEP, provider, send_no, code=outputs.plain(failure.code, 100),
                                    message=outputs.plain(failure.message, 2000), latency_ms=latency_ms,
                                    known=failure.known, stands=stands, cost_micro_usd=failure.cost_micro_usd)  # fmt: skip
            return True

        await self._insist("record", write, arrived=True)
        self._resources.news.committed()

    def _without_result(self, failures: Sequence[Failure]) -> Ending:
        last, remaining_s = self.lease.run >= self._resources.max_runs, self._remaining_s()
        return endings.without_result(failures, self._backoff_s(), remaining_s, is_last=last)

    async def _finish(self, ending: Finish) -> None:
        if not await self._resources.shared.finish(self.lease, ending, lingers=self.lingers):

            async def write(tx: Tx) -> str:
                return await runs.finish(tx, self.lease, ending)

            await self._insist("finish", write)
        self._resources.news.committed()
        took_s = time.monotonic() - self._began
        metrics.of(metrics.JOBS, self._model, ending.outcome, ending.code or "").inc()
        metrics.of(metrics.JOB_SECONDS, self._model).observe(took_s)
        finished.write({"outcome": ending.outcome, "code": ending.code, "provider": ending.provider, "model": self._model,
                        "latency_ms": round(took_s * 1000), **self._facts})  # fmt: skip

    async def _release(self, ending: Release) -> None:
        async def write(tx: Tx) -> bool:
            await runs.release(tx, self.lease, ending.delay_s, counts=ending.counts)
            return True

        await self._insist("release", write, arrived=True)
        metrics.RUNS_RELEASED.labels(ending.reason).inc()
        log.info("run.released", reason=ending.reason, delay_s=round(ending.delay_s, 2), counts=ending.counts,
                 **self._facts)  # fmt: skip

    async def _insist(
        self, what: str, work: Callable[[Tx], Awaitable[T]], *, single: bool = True, arrived: T | None = None
    ) -> T:
        """Do `work` in a transaction (of one statement), again while the database is away or its clock was set.

        `arrived`: the answer when a second try finds nothing left to do, since the first one's commit had arrived.
        """
        transaction = self._db.tenant_single if single else self._db.tenant_tx
        until = time.monotonic() + PATIENCE_S
        pause_s = 0.1
        tried = synced = False
        while True:
            try:
                async with transaction(self.lease.org_id, ROLE) as tx:
                    return await work(tx)
            except refusals.StaleLease:
                if arrived is None or not tried:
                    raise
                return arrived
            except (psycopg.Error, DatabaseUnavailable) as error:
                expired = isinstance(error, psycopg.Error) and error.sqlstate == EXPIRED_CONTEXT and not synced
                if time.monotonic() > until or not (expired or isinstance(error, AWAY)):
                    raise
                log.warning("database.retried", what=what, error=type(error).__name__, **self._facts)
            tried = True
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)
            if expired:
                await self._db.sync_clock()
                synced = True

    def _remaining_s(self) -> float:
        return self._deadline - time.monotonic()

    def _backoff_s(self) -> float:
        """Doubles with each run, 0.8 to 1.2 times that: the clock's low digits keep retries apart."""
        return float(
            self._resources.backoff_s * 2 ** (self.lease.run - 1) * (0.8 + time.monotonic_ns() // 1000 % 4001 / 10_000)
        )
