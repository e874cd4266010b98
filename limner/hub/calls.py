"""Calls that are answered at once: jobs that the process which took them answers itself.

Reserve and settle are one commit each. Between them the job's lease is this process's; where it dies, a worker that finds the
lease run out only closes the job (executor.Run), and never runs it again.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from starlette.requests import Request

from limner.db.pools import AWAY, Database
from limner.hub import endings, jobs, pricing, routing, runs, stated, terms
from limner.hub.catalog import Model, Route
from limner.hub.endings import Failure, Finish
from limner.hub.executor import STEP, Resources, Run
from limner.hub.gates import Passage
from limner.hub.head_start import HeadStart
from limner.hub.intake import Intake
from limner.hub.pricing import Tokens
from limner.hub.providers.base import CallClass, ProviderError
from limner.hub.runs import Delivery, Lease
from limner.kit import ids
from limner.ledger import refusals
from limner.telemetry import logs, metrics
from limner.web.caller import Authenticate, Caller

ROLE = "limner_dispatch"
SETTLED_WITHIN_S = 1.0
ELSEWHERE_S = 0.05
"""How long a call that was answered by another process may still have its place."""
MAX_RUNS = 1
"""So that whoever claims it afterwards finds its runs used up."""
Candidates = Sequence[routing.Candidate]
log = logs.get("calls")


class Call(Run):
    """One call from its reservation on. Of several providers each is asked once."""

    def __init__(
        self, resources: Resources, lease: Lease, submitted: jobs.Submitted, model: str, passage: Passage,
        *, has_place: bool,
    ) -> None:  # fmt: skip
        super().__init__(resources, lease)
        self._model = model
        self._passage = passage
        self._before: list[tuple[str, str]] = []
        self.submitted = submitted
        self.has_place = has_place
        self.send_no = 1
        self.asked_at = time.monotonic()

    async def ask_next(self, candidate: routing.Candidate, tokens: int) -> Failure | None:
        """Record that another provider is about to be asked, which may be passed over. Raises refusals.StaleLease."""
        passage = await self._resources.gates.enter(candidate.route, tokens)
        if isinstance(passage, Failure):
            return self._passed(candidate, passage)
        intent = await self._intend(routing.after(candidate, self._before), CallClass.C)
        if isinstance(intent, Failure):
            passage.leave()
            return self._passed(candidate, intent)
        self._passage = passage
        self.send_no, self.asked_at = intent.send_no, time.monotonic()
        return None

    def _passed(self, candidate: routing.Candidate, failure: Failure) -> Failure:
        metrics.ATTEMPTS.labels(candidate.route.provider, failure.code).inc()
        self._before.append((candidate.route.provider, failure.passed))
        return failure

    async def send(self) -> None:
        """Right before the provider is asked. Raises ProviderError where there is no leave any more."""
        late = await self._passage.send()
        if late is not None:
            raise ProviderError(late.code, late.message, late.kind, retry_after_s=late.retry_after_s)

    async def failed(self, route: Route, error: ProviderError) -> Failure:
        """Record that a provider did not deliver."""
        failure = stated.failure(error, route, self._facts)
        self._resources.keys.tell(route.own_key, failure.code)
        self._before.append((route.provider, ""))
        await self._passage.end(failure)
        await self._record(route.provider, self.send_no, failure, self._latency_ms())
        return failure

    async def answered(self, error: ProviderError | None, used: Tokens | None) -> None:
        """The provider delivered, as far as it did: `error` is why no further."""
        await self._passage.end(None if error is None else endings.failed(error), used.all if used else None)

    def leave(self) -> None:
        """Nobody will hear how the call went on."""
        self._passage.leave()

    def charged(
        self,
        model: Model,
        route: Route,
        used: Tokens,
        reference: str | None,
        *,
        estimated: bool,
        cost_micro_usd: int | None = None,
        outputs: list[dict[str, Any]],
    ) -> Finish:
        """The ending of a call that delivered: its price, never above the hold, and what it consumed.

        `cost_micro_usd`: as the provider stated it; else by the route's own figures.
        """
        cost = pricing.cost_micro_usd(route, used) if cost_micro_usd is None else cost_micro_usd
        price_mc = pricing.part_mc(pricing.tokens_mc(model, used), terms.percent_of(route, None))
        self._resources.keys.tell(route.own_key, None)
        return Finish(
            "succeeded",
            charge_mc=min(price_mc, self.submitted.hold_mc),
            outputs=outputs,
            provider=route.provider,
            usage=endings.token_usage(used, None if route.own_key else cost, estimated=estimated),
            delivery=Delivery(STEP, route.provider, self.send_no, reference, cost, self._latency_ms()),
        )

    def _latency_ms(self) -> int:
        return round((time.monotonic() - self.asked_at) * 1000)


class Reading:
    """Who a key stands for, once what this process answered for the organization is in the books: a reader finds it there."""

    def __init__(self, authenticate: Authenticate) -> None:
        self._authenticate = authenticate
        self.calls: Calls | None = None

    async def __call__(self, request: Request) -> Caller:
        caller = await self._authenticate(request)
        return await self._after(caller) if request.method == "GET" else caller

    async def again(self, request: Request) -> Caller:
        """As Authenticate's."""
        return await self._after(await self._authenticate.again(request))

    async def _after(self, caller: Caller) -> Caller:
        if self.calls is not None:
            await self.calls.settled(caller.org_id)
        return caller


class NoneOpen(Exception):
    """Every provider of a model is left alone for now; one of them for `wait_s` at least."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"no provider can be asked for {wait_s:.0f} s")
        self.wait_s = wait_s


class Calls:
    """Of one process: reserves calls, and keeps their leases while they last."""

    def __init__(self, db: Database, intake: Intake, resources: Resources, lease_s: float, heartbeat_s: float) -> None:
        self._db = db
        self._intake = intake
        self._resources = resources
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._open: dict[UUID, Call] = {}
        self._settling: dict[asyncio.Task[None], UUID] = {}
        self.lost: set[UUID] = set()
        """Of the open ones: those whose lease is somebody else's, or whose owner asked to stop."""
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex[-8:]}"

    def first(self, candidates: Candidates) -> jobs.FirstCall:
        """What a submission needs to be born as a call that asks the first of them."""
        candidate = candidates[0]
        route = candidate.route
        is_capped = any(one.route.max_running is not None for one in candidates)
        return jobs.FirstCall(
            self.owner, self._lease_s, route.provider, route.provider_model, candidate.told, route.own_key is not None,
            route.provider_id if is_capped else None,
        )  # fmt: skip

    async def reserve(
        self, org_id: UUID, candidates: Candidates, tokens: int, order: Callable[[Candidates], jobs.Submission],
        ahead: HeadStart,
    ) -> tuple[Candidates, Call | jobs.Submitted]:  # fmt: skip
        """The candidates from the first on that may be asked now, and the call, or what its idempotency key stands for.

        `order`: the submission for those that are left; the first of them is asked as early as it may be. Raises NoneOpen, and
        what Intake.submit raises.
        """
        before: list[tuple[str, str]] = []
        shut: list[Failure] = []
        for place, candidate in enumerate(candidates):
            passage = await self._resources.gates.enter(candidate.route, tokens)
            if isinstance(passage, Failure):
                failure = passage
            else:
                left = [routing.after(candidate, before), *candidates[place + 1 :]]
                begin = partial(ahead.begin, left[0])
                try:
                    reserved = await self._reserve(org_id, order(left), passage, begin)
                except refusals.NoPlace:
                    failure = endings.FULL
                else:
                    if isinstance(reserved, Call) and passage.begin():
                        await ahead.go()
                    return left, reserved
            metrics.ATTEMPTS.labels(candidate.route.provider, failure.code).inc()
            before.append((candidate.route.provider, failure.passed))
            shut.append(failure)
        raise NoneOpen(min((failure.retry_after_s for failure in shut if failure.full), default=0.0))

    async def _reserve(
        self, org_id: UUID, submission: jobs.Submission, passage: Passage, meanwhile: Callable[[], None]
    ) -> Call | jobs.Submitted:
        """What answered calls still have is waited for before one is refused: credits of this organization, places of all."""
        has_place = submission.call is not None and submission.call.place is not None
        alone = submission.limits.count_alone or has_place
        try:
            submitted = await self._submit(org_id, submission, alone, meanwhile)
        except BaseException:
            passage.leave()
            raise
        if submitted.replayed:
            passage.leave()
            return submitted
        lease = Lease(org_id, submitted.job_id, submission.app_id, 1, 1, None, submission.deadline_s, 0.0)
        call = Call(self._resources, lease, submitted, submission.model, passage, has_place=has_place)
        self._open[lease.job_id] = call
        return call

    async def _submit(
        self, org_id: UUID, submission: jobs.Submission, alone: bool, meanwhile: Callable[[], None]
    ) -> jobs.Submitted:
        try:
            return await self._intake.submit(org_id, submission, alone=alone, meanwhile=meanwhile)
        except refusals.TooFewCredits:
            if not await self.settled(org_id):
                raise
        except refusals.NoPlace:
            if not await self.settled():
                await asyncio.sleep(ELSEWHERE_S)
        return await self._intake.submit(org_id, submission, alone=alone)

    async def settled(self, org_id: UUID | None = None) -> bool:
        """Wait for the settlements of an organization (None: of all) that are under way; False when there are none."""
        settling = [task for task, org in self._settling.items() if org_id in {org, None}]
        if settling:
            self._resources.shared.hurry()
            await asyncio.wait(settling, timeout=SETTLED_WITHIN_S)
        return bool(settling)

    def end_later(self, call: Call, ending: Finish) -> asyncio.Task[None]:
        """As `end`, for a call whose answer does not wait for it: settled within milliseconds, together with others."""
        call.lingers = not call.has_place  # the next call waits for it
        task = asyncio.create_task(self.end(call, ending))
        self._settling[task] = call.lease.org_id
        task.add_done_callback(self._settling.pop)
        return task

    async def end(self, call: Call, ending: Finish) -> None:
        """Settle. What cannot be written now is settled by whoever finds the lease run out."""
        try:
            await call.end(ending)
        except Exception:
            log.exception("call.unsettled", job=call.lease.job_id)
        finally:
            call.leave()
            self._open.pop(call.lease.job_id, None)
            self.lost.discard(call.lease.job_id)

    async def keep(self) -> None:
        """Renew the leases of calls that last, and tell what was seen of providers, until cancelled."""
        await asyncio.gather(self._renew_leases(), self._resources.gates.keep())

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            leases = [call.lease for call in self._open.values()]
            if leases:
                await self._renew(leases)

    async def _renew(self, leases: Sequence[Lease]) -> None:
        try:
            async with self._db.system_tx(ROLE, "leases are renewed over organizations: ids only") as tx:
                verdicts = await runs.heartbeat(tx, leases, self._lease_s)
        except AWAY as error:
            log.warning("heartbeat.missed", error=type(error).__name__)
            return
        self.lost.update(job_id for job_id, verdict in verdicts.items() if verdict != "ok" and job_id in self._open)
