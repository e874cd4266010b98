"""Runs as a worker makes them: claim, start, attempts, progress, release, finish. Every write names its fence.

`claim`, `heartbeat` and `report_many` belong to the dispatch role (ids and leases, never payloads); the rest is the
worker role's, inside the job's own organization.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import orjson
import psycopg

from limner.db.tx import Tx
from limner.hub.providers.base import Blob
from limner.kit import ids
from limner.ledger import refusals

Outcome = Literal["succeeded", "failed", "cancelled"]
Decision = Literal["send", "resume", "reuse", "uncertain", "full"]


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job. `exhausted` names why it may only be finished: cancelled, deadline_exceeded, runs_exhausted."""

    org_id: UUID
    job_id: UUID
    app_id: UUID
    fence: int
    run: int
    exhausted: str | None
    deadline_in_s: float
    waited_ms: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a started run needs: the request as it was priced, and its images."""

    app_id: UUID
    model_id: UUID
    model: str
    kind: str
    input: dict[str, Any]
    unit_price_mc: int
    token_prices: dict[str, Any] | None
    price_hold_mc: int
    request_id: str | None
    traceparent: str | None
    terms: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """What may be done about one provider. `outputs` and `cost_micro_usd` come with `reuse`."""

    decision: Decision
    send_no: int
    idem_key: str
    provider_task_id: str | None
    outputs: list[dict[str, Any]] | None
    cost_micro_usd: int | None


@dataclass(frozen=True, slots=True)
class Task:
    """What a provider took on and has not ended, as far as is known."""

    step: str
    provider: str
    provider_model: str
    task_id: str
    idem_key: str
    model_id: UUID
    kind: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """The provider call that brought a job's outputs, recorded in the commit that finishes the job."""

    step: str
    provider: str
    send_no: int
    task_id: str | None
    cost_micro_usd: int | None
    latency_ms: int


@dataclass(frozen=True, slots=True)
class Closing:
    """How a job ends: charged when it succeeded, its hold released otherwise."""

    outcome: Outcome
    code: str | None = None
    message: str | None = None
    charge_mc: int = 0
    outputs: list[dict[str, Any]] | None = None
    provider: str | None = None
    usage: list[dict[str, Any]] | None = None
    delivery: Delivery | None = None


async def claim(
    tx: Tx, owner: str, limit: int, lease_s: float, org_cap: int | None = None, back_s: float | None = None,
    since: UUID | None = None,
) -> list[Lease]:  # fmt: skip
    """Lease up to `limit` jobs: overdue first, then shared between organizations and their apps by weight.

    `org_cap`: how many jobs of one organization may run at once, where it has no cap of its own. `back_s`: leases that
    ran out longer ago are not looked for this time; None: all are. `since`: of `ready_since`; None: whatever is ready.
    """
    rows = await tx.all(
        "SELECT * FROM limner.claim_jobs(%s, %s, %s, %s::int, %s::float8, %s)",
        [owner, limit, lease_s, org_cap, back_s, since],
    )
    return [Lease(**row) for row in rows]


async def ready_since(tx: Tx) -> UUID:
    """Where the next claims may begin to look. What is ready is not older; what becomes so again and what comes late may be."""
    row = await tx.get("SELECT limner.ready_since() AS id")
    return UUID(str(row["id"]))


async def heartbeat(tx: Tx, leases: Sequence[Lease], lease_s: float) -> dict[UUID, str]:
    """Renew leases; by job: "ok", "cancel" (its owner asks to stop) or "lost" (write nothing more)."""
    rows = await tx.all(
        "SELECT * FROM limner.heartbeat_many(%s::uuid[], %s::uuid[], %s::bigint[], %s)",
        [[x.org_id for x in leases], [x.job_id for x in leases], [x.fence for x in leases], lease_s],
    )
    return {row["job_id"]: row["verdict"] for row in rows}


async def report_many(tx: Tx, reports: Sequence[tuple[Lease, int, str]]) -> None:
    """Write (lease, percent, stage) of live runs in one statement; nothing where the lease is lost."""
    await tx.execute(
        "SELECT limner.report_many(%s::uuid[], %s::uuid[], %s::bigint[], %s::int[], %s::text[])",
        [
            [lease.org_id for lease, _, _ in reports],
            [lease.job_id for lease, _, _ in reports],
            [lease.fence for lease, _, _ in reports],
            [max(0, min(percent, 100)) for _, percent, _ in reports],
            [stage[:100] for _, _, stage in reports],
        ],
    )


async def start(tx: Tx, lease: Lease) -> Work:
    """Mark the job running. Raises refusals.StaleLease."""
    row = await _get(
        tx, "SELECT * FROM limner.start_job(%s, %s, %s, %s)", [tx.ctx, lease.job_id, lease.fence, ids.new()]
    )
    return Work(**row)


def work(answer: Mapping[str, Any]) -> Work:
    """A started job as `work_many` answers it: ids are texts there."""
    return Work(**{**answer, "app_id": UUID(answer["app_id"]), "model_id": UUID(answer["model_id"])})


async def work_many(tx: Tx, batch: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[int, Any]]:
    """Starts, intents and finishes, by verb, in one commit: (place, answer) of each that was done; the others were not written."""
    query = "SELECT * FROM limner.work_many(%s, %s::text::jsonb)"
    return [(row["place"], row["answer"]) for row in await tx.all(query, [tx.ctx, orjson.dumps(batch).decode()])]


async def model_of(tx: Tx, job_id: UUID) -> str:
    """The name of the job's model, for a run that never starts it."""
    row = await tx.get("SELECT j.model FROM limner.job j WHERE j.org_id = %s AND j.id = %s", [tx.org_id, job_id])
    return str(row["model"])


async def load_images(tx: Tx, job_id: UUID) -> dict[str, Blob]:
    """The job's input images by name: image_0, image_1 …, mask."""
    rows = await tx.all(
        "SELECT name, media_type, data, width, height FROM limner.job_input WHERE org_id = %s AND job_id = %s",
        [tx.org_id, job_id],
    )
    return {row.pop("name"): Blob(**row) for row in rows}


async def answered(tx: Tx, job_id: UUID) -> dict[str, bool]:
    """The providers that have taken, or done, the job's work in an earlier run, and whether a task of it is under way there."""
    rows = await tx.all(
        "SELECT c.provider, bool_or(c.state = 'accepted') AS works FROM limner.provider_call c"
        " WHERE c.org_id = %s AND c.job_id = %s AND c.state IN ('accepted', 'done') GROUP BY c.provider",
        [tx.org_id, job_id],
    )
    return {row["provider"]: row["works"] for row in rows}


async def intend(
    tx: Tx, lease: Lease, step: str, provider: str, provider_model: str, rule: str, *, resend: bool = False,
    provider_id: UUID | None = None, own_key: bool = False,
) -> Intent:  # fmt: skip
    """Record that a provider is about to be called, and with whose key, before the socket opens. Raises refusals.StaleLease.

    By `provider_id` the job gets its place where places are counted; "full" wrote nothing.
    """
    row = await _get(
        tx,
        "SELECT * FROM limner.call_intent(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [tx.ctx, lease.job_id, lease.fence, step, provider, provider_model, rule, resend, provider_id, own_key],
    )
    return Intent(**row)


async def record_accepted(tx: Tx, lease: Lease, step: str, provider: str, send_no: int, task_id: str) -> None:
    """The provider took the call on as a task of this name: the next `intend` says "resume". Raises refusals.StaleLease."""
    await _get(
        tx,
        "SELECT limner.call_result(%s, %s, %s, %s, %s, %s, 'accepted', %s, NULL, NULL, NULL, NULL, NULL, NULL)",
        [tx.ctx, lease.job_id, lease.fence, step, provider, send_no, task_id],
    )


async def adopt_task(tx: Tx, job_id: UUID, step: str, provider: str, task_id: str) -> bool:
    """The provider says under which name it took on an open job's call: whether nobody knew. For the API."""
    row = await tx.get("SELECT limner.adopt_task(%s, %s, %s, %s, %s) AS new", [tx.ctx, job_id, step, provider, task_id])
    return bool(row["new"])


async def list_tasks(tx: Tx, job_id: UUID) -> list[Task]:
    """What providers took on for the job and have not ended, as far as is known; the latest first."""
    rows = await tx.all(
        "SELECT c.step, c.provider, c.provider_model, c.provider_task_id AS task_id, c.idem_key, j.model_id, j.kind"
        " FROM limner.provider_call c JOIN limner.job j ON j.org_id = c.org_id AND j.id = c.job_id"
        " WHERE c.org_id = %s AND c.job_id = %s AND c.state = 'accepted' ORDER BY c.created_at DESC LIMIT 20",
        [tx.org_id, job_id],
    )
    return [Task(**row) for row in rows]


async def record_error(
    tx: Tx, lease: Lease, step: str, provider: str, send_no: int, *, code: str, message: str, latency_ms: int,
    known: bool = True, stands: bool = False, cost_micro_usd: int | None = None,
) -> None:  # fmt: skip
    """The call failed, or (`known` False) may have been done all the same: the next `intend` then says "uncertain".

    `stands`: its task is what it was, and the next `intend` says "resume". `cost_micro_usd`: what the provider billed for it. Writes
    the event `job.attempt_failed`. Raises refusals.StaleLease.
    """
    state = "accepted" if stands else "error" if known else "unknown"
    await _get(
        tx,
        "SELECT limner.call_result(%s, %s, %s, %s, %s, %s, %s, NULL, %s, %s, %s, %s, NULL, %s)",
        [tx.ctx, lease.job_id, lease.fence, step, provider, send_no, state, cost_micro_usd, latency_ms, code, message, ids.new()],
    )  # fmt: skip


async def release(tx: Tx, lease: Lease, delay_s: float, *, counts: bool) -> None:
    """Give the job back for another run; `counts` False gives the run back too. Raises refusals.StaleLease."""
    await _get(
        tx,
        "SELECT limner.release_job(%s, %s, %s, %s, %s)",
        [tx.ctx, lease.job_id, lease.fence, delay_s, counts],
    )


async def finish(tx: Tx, lease: Lease, closing: Closing) -> str:
    """Settle the hold, close the job, write usage and the terminal event: one commit.

    Answers the outcome, or "already" when this fence had closed the job so (an answer was lost). Raises
    refusals.StaleLease, and refusals.BadAmount for a charge above the hold.
    """
    args = closing_args(closing)
    row = await _get(
        tx,
        "SELECT limner.finish_job(%s, %s, %s, %s, %s, %s::text::jsonb, %s, %s, %s, %s::text::jsonb, %s, %s, %s::text::jsonb)"
        " AS outcome",
        [tx.ctx, lease.job_id, lease.fence, closing.outcome, closing.charge_mc, _json(closing.outputs), closing.code,
         closing.message, closing.provider, _json(closing.usage), ids.new(), ids.new(), _json(args["call"])],
    )  # fmt: skip
    return str(row["outcome"])


async def abandoned(tx: Tx, lease: Lease) -> Closing | None:
    """How a call ends whose process died before it was settled; None for any other job.

    The charge was written down when it was reserved, by the model's rule for answers that nobody listens to, and by whose key was
    being used.
    """
    row = await tx.find(
        "SELECT j.input -> CASE WHEN c.own_key THEN 'abandoned_own_mc' ELSE 'abandoned_mc' END AS charge_mc, c.step, c.provider, c.send_no"
        " FROM limner.job j LEFT JOIN LATERAL (SELECT c.step, c.provider, c.send_no, c.own_key"
        " FROM limner.provider_call c WHERE c.org_id = j.org_id AND c.job_id = j.id"
        " AND c.state IN ('intent', 'accepted') ORDER BY c.created_at DESC LIMIT 1) c ON true"
        " WHERE j.org_id = %s AND j.id = %s AND j.route <> 'generate'",
        [tx.org_id, lease.job_id],
    )
    if row is None or not isinstance(row["charge_mc"], int) or row["provider"] is None or row["charge_mc"] == 0:
        return None
    used = [{"kind": "call", "quantity": 1, "unit": "estimated_call", "cost_micro_usd": None}]
    delivery = Delivery(row["step"], row["provider"], row["send_no"], None, None, 0)
    return Closing(
        "succeeded", charge_mc=row["charge_mc"], outputs=[], provider=row["provider"], usage=used, delivery=delivery
    )


def closing_args(closing: Closing) -> dict[str, Any]:
    """A closing as `work_many` reads it."""
    call = closing.delivery
    return {
        "outcome": closing.outcome, "amount": closing.charge_mc, "outputs": closing.outputs, "error_code": closing.code,
        "error_message": closing.message, "provider": closing.provider, "usage": closing.usage,
        "call": None if call is None else {
            "step": call.step, "provider": call.provider, "send_no": call.send_no, "task": call.task_id,
            "cost": call.cost_micro_usd, "latency_ms": call.latency_ms,
        },
    }  # fmt: skip


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


async def _get(tx: Tx, query: str, parameters: list[Any]) -> dict[str, Any]:
    try:
        return await tx.get(query, parameters)
    except psycopg.Error as error:
        raise refusals.read(error) from error
