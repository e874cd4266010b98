"""Calls that are answered at once: jobs that the process which took them answers itself.

Reserve and settle are one commit each. Between them the job's lease is this process's; where it dies, a worker that finds the
lease run out only closes the job (executor.Run), and never runs it again.
"""

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from limner.db.pools import AWAY, Database
from limner.hub import endings, jobs, pricing, routing, runs
from limner.hub.catalog import Model, Route
from limner.hub.endings import Failure, Finish
from limner.hub.executor import STEP, Resources, Run
from limner.hub.intake import Intake
from limner.hub.pricing import Tokens
from limner.hub.providers.base import CallClass, ProviderError
from limner.hub.runs import Delivery, Lease
from limner.kit import ids
from limner.telemetry import logs

ROLE = "limner_dispatch"
MAX_RUNS = 1
"""So that whoever claims it afterwards finds its runs used up."""
log = logs.get("calls")


class Call(Run):
    """One call from its reservation on. Of several providers each is asked once."""

    def __init__(self, resources: Resources, lease: Lease, submitted: jobs.Submitted, model: str) -> None:
        super().__init__(resources, lease)
        self._model = model
        self.submitted = submitted
        self.send_no = 1
        self.asked_at = time.monotonic()

    async def ask_next(self, candidate: routing.Candidate) -> Failure | None:
        """Record that another provider is about to be asked. Raises refusals.StaleLease."""
        intent = await self._intend(candidate, CallClass.C)
        if isinstance(intent, Failure):
            return intent
        self.send_no, self.asked_at = intent.send_no, time.monotonic()
        return None

    async def failed(self, provider: str, error: ProviderError) -> Failure:
        """Record that a provider did not deliver."""
        failure = Failure(
            error.code,
            error.message,
            error.kind,
            known=not error.outcome_unknown,
            retry_after_s=error.retry_after_s or 0,
        )
        await self._record(provider, self.send_no, failure, self._latency_ms())
        return failure

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
        return Finish(
            "succeeded",
            charge_mc=min(pricing.tokens_mc(model, used), self.submitted.hold_mc),
            outputs=outputs,
            provider=route.provider,
            usage=endings.token_usage(used, cost, estimated=estimated),
            delivery=Delivery(STEP, route.provider, self.send_no, reference, cost, self._latency_ms()),
        )

    def _latency_ms(self) -> int:
        return round((time.monotonic() - self.asked_at) * 1000)


class Calls:
    """Of one process: reserves calls, and keeps their leases while they last."""

    def __init__(self, db: Database, intake: Intake, resources: Resources, lease_s: float, heartbeat_s: float) -> None:
        self._db = db
        self._intake = intake
        self._resources = resources
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._open: dict[UUID, Call] = {}
        self.lost: set[UUID] = set()
        """Of the open ones: those whose lease is somebody else's, or whose owner asked to stop."""
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex[-8:]}"

    def first(self, candidate: routing.Candidate) -> jobs.FirstCall:
        """What a submission needs to be born as a call."""
        route = candidate.route
        return jobs.FirstCall(self.owner, self._lease_s, route.provider, route.provider_model, candidate.rule)

    async def reserve(self, org_id: UUID, submission: jobs.Submission, *, alone: bool) -> Call | jobs.Submitted:
        """The call, or what its idempotency key stands for. Raises what Intake.submit raises."""
        submitted = await self._intake.submit(org_id, submission, alone=alone)
        if submitted.replayed:
            return submitted
        lease = Lease(org_id, submitted.job_id, submission.app_id, 1, 1, None, submission.deadline_s, 0.0)
        call = Call(self._resources, lease, submitted, submission.model)
        self._open[lease.job_id] = call
        return call

    async def end(self, call: Call, ending: Finish) -> None:
        """Settle. What cannot be written now is settled by whoever finds the lease run out."""
        try:
            await call.end(ending)
        except Exception:
            log.exception("call.unsettled", job=call.lease.job_id)
        finally:
            self._open.pop(call.lease.job_id, None)
            self.lost.discard(call.lease.job_id)

    async def keep(self) -> None:
        """Renew the leases of calls that last, until cancelled."""
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
