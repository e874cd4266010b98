"""Jobs as their owner sees them: submit, get, list, cancel. Amounts in milli-credits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import psycopg

from limner.db.tx import Tx
from limner.hub.providers.base import Blob
from limner.kit import ids
from limner.ledger import refusals
from limner.tenancy import end_users

STATES = ("queued", "running", "succeeded", "failed", "cancelled")
OPEN = ("queued", "running")

SUBMIT = """
SELECT * FROM limner.submit_job(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::text::jsonb, %s, %s, %s, %s, %s, %s,
                                %s::timestamptz, %s::int, %s::int, %s::int, %s::int, %s, %s::text::jsonb, %s::text::jsonb,
                                %s::text::jsonb, %s::int)
"""
SUBMIT_WITH_IMAGES = SUBMIT.rstrip()[:-1] + ", %s::text[], %s::text[], %s::int[], %s::int[], %s::bytea[])"
SUBMIT_MANY = "SELECT * FROM limner.submit_jobs(%s, %s::text::json)"
COLUMNS = """
j.id, j.app_id, j.end_user_id, j.model, j.kind, j.state, j.priority, j.input, j.outputs, j.unit_price_mc, j.token_prices,
j.price_hold_mc, j.price_final_mc, j.refunded_mc, j.run_at, j.cancel_after_s, j.runs, j.provider_used, j.error_code, j.error_message,
j.finished_fence, j.request_id, j.terms, j.created_at, j.started_at, j.finished_at, q.percent, q.stage, q.cancel_requested_at,
u.external_id
"""
SOURCE = """
limner.job j LEFT JOIN limner.job_queue q ON q.org_id = j.org_id AND q.job_id = j.id
             LEFT JOIN limner.end_user u ON u.org_id = j.org_id AND u.id = j.end_user_id
"""

STILL_OPEN = " AND q.job_id IS NOT NULL"
"""Open jobs are few among those that ever were, and have a row in the queue."""


class JobNotFound(LookupError):
    """This app (and end user, when one is named) has no such job."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Jobs a minute for the end user, the app and the organization, and the organization's open jobs; None: no limit."""

    user_per_min: int | None = None
    app_per_min: int | None = None
    org_per_min: int | None = None
    max_open: int | None = None

    @property
    def count_alone(self) -> bool:
        """What a statement that several submits share does not count, or would wait for."""
        return self.org_per_min is not None or self.max_open is not None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as parsed, priced and hashed. `external_id` None: the organization's wallet pays. `run_at` None: now.

    `job_id`: where something was decided by it before. `cancel_after_s`: where the request has a deadline of its own; `deadline_s` is
    never later.
    """

    app_id: UUID
    external_id: str | None
    route: str
    model_id: UUID
    model: str
    kind: str
    unit_price_mc: int
    hold_mc: int
    priority: int
    idempotency_key: str | None
    request_hash: bytes
    input: Mapping[str, Any]
    wait_s: int
    deadline_s: int
    max_runs: int
    images: Sequence[tuple[str, Blob]] = ()
    request_id: str | None = None
    traceparent: str | None = None
    run_at: datetime | None = None
    limits: Limits = NO_LIMITS
    webhook_url: str | None = None
    call: "FirstCall | None" = None
    token_prices: Mapping[str, Any] | None = None
    job_id: UUID | None = None
    terms: Mapping[str, Any] | None = None
    cancel_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class FirstCall:
    """Of a job that is answered at once: who has its lease, for how many seconds, and whom it asks first, why, and with whose key.

    `place`: that provider's id, where it or one of those that may follow takes only so many at once.
    """

    owner: str
    lease_s: float
    provider: str
    provider_model: str
    rule: str
    own_key: bool = False
    place: UUID | None = None

    def facts(self) -> dict[str, Any]:
        """By name; the standard library's `asdict` copies every value, for a fortieth of a busy call."""
        return {
            "owner": self.owner, "lease_s": self.lease_s, "provider": self.provider, "provider_model": self.provider_model,
            "rule": self.rule, "own_key": self.own_key, "place": self.place,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Submitted:
    """`available_mc` is what the paying wallet held right after the hold, also when this is a replay.

    The moments at which each limit's bucket will be full again are None for a replay and where there is no limit.
    """

    job_id: UUID
    replayed: bool
    hold_mc: int
    available_mc: int
    wait_s: int
    user_full_at: datetime | None = None
    app_full_at: datetime | None = None
    org_full_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job's record beside its live progress. `outputs` as stored: object keys, not URLs."""

    id: UUID
    app_id: UUID
    end_user_id: UUID | None
    model: str
    kind: str
    state: str
    priority: int
    input: dict[str, Any]
    outputs: list[dict[str, Any]] | None
    unit_price_mc: int
    token_prices: dict[str, Any] | None
    price_hold_mc: int
    price_final_mc: int | None
    refunded_mc: int
    run_at: datetime | None
    cancel_after_s: int | None
    runs: int
    provider_used: str | None
    error_code: str | None
    error_message: str | None
    finished_fence: int | None
    request_id: str | None
    terms: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    percent: int | None
    stage: str | None
    cancel_requested_at: datetime | None
    external_id: str | None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def deadline(self) -> datetime | None:
        """When the job is given up, where its request said so."""
        due = self.run_at or self.created_at
        return None if self.cancel_after_s is None else due + timedelta(seconds=self.cancel_after_s)

    @property
    def is_erased(self) -> bool:
        """It delivered, and what it delivered was erased since: a success always has outputs, if only an empty list."""
        return self.state == "succeeded" and self.outputs is None

    @property
    def charged_mc(self) -> int:
        """What is held while the job is open, what was charged once it is closed."""
        return self.price_hold_mc if self.price_final_mc is None else self.price_final_mc


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


async def submit(tx: Tx, job_id: UUID, request: Submission, *, again: bool = False) -> Submitted:
    """Idempotency, hold, job and queue row in one statement.

    `job_id` is the caller's; `again` says that it was sent before and the answer lost, so that it may be a replay. Raises
    refusals.TooFewCredits, refusals.Inactive, refusals.Reused, refusals.TooMany, and for a call
    refusals.NoPlace; nothing is written then.
    """
    limits = request.limits
    parameters: list[Any] = [
        tx.ctx, job_id, request.app_id, request.external_id, ids.new(), request.route, request.model_id,
        request.model, request.kind, request.unit_price_mc, request.hold_mc, request.priority,
        request.idempotency_key, request.request_hash, orjson.dumps(request.input).decode(), request.wait_s,
        request.deadline_s, request.max_runs, request.request_id, request.traceparent, again,
        request.run_at, limits.user_per_min, limits.app_per_min, limits.org_per_min, limits.max_open,
        request.webhook_url, _json(request.call), _json(request.token_prices),
        _json(request.terms), request.cancel_after_s,
    ]  # fmt: skip
    query = SUBMIT
    if request.images:
        query = SUBMIT_WITH_IMAGES
        blobs = [blob for _, blob in request.images]
        parameters += [
            [name for name, _ in request.images],
            [blob.media_type for blob in blobs],
            [blob.width for blob in blobs],
            [blob.height for blob in blobs],
            [blob.data for blob in blobs],
        ]
    try:
        row = await tx.get(query, parameters)
    except psycopg.Error as error:
        raise refusals.read(error) from error
    row["replayed"] = row.pop("outcome") == "replayed"
    return Submitted(**row)


async def find_replayed(tx: Tx, request: Submission) -> Submitted | None:
    """What the request's idempotency key stands for, where nothing new can be accepted. Raises refusals.Reused."""
    query = "SELECT * FROM limner.find_replayed(%s, %s, %s, %s, %s, %s)"
    asked = [request.app_id, request.external_id, request.route, request.idempotency_key, request.request_hash]
    try:
        row = await tx.find(query, [tx.ctx, *asked])
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return Submitted(replayed=True, **row) if row else None


async def submit_many(tx: Tx, batch: Sequence[tuple[UUID, UUID, Submission]]) -> dict[UUID, Submitted]:
    """Plain submits of the organizations of `tx` in one statement and one commit: (organization, job id, request) each.

    Those that were accepted, by job id. What is missing there was written nowhere (a new user, a key seen before, too few
    credits, a limit reached, a wallet in use): `submit` it alone and hear why. No images, and no limits of the organization.
    """
    rows = [
        {
            "org": org_id, "job": job_id, "app": one.app_id, "external": one.external_id, "route": one.route,
            "model_id": one.model_id, "model": one.model, "kind": one.kind, "unit_price": one.unit_price_mc,
            "hold": one.hold_mc, "priority": one.priority, "key": one.idempotency_key,
            "hash": "\\x" + one.request_hash.hex(), "input": one.input, "wait": one.wait_s, "deadline_s": one.deadline_s,
            "max_runs": one.max_runs, "request_id": one.request_id, "traceparent": one.traceparent, "run_at": one.run_at,
            "user_rate": one.limits.user_per_min, "app_rate": one.limits.app_per_min, "webhook_url": one.webhook_url,
            "token_prices": one.token_prices, "terms": one.terms, "cancel_after": one.cancel_after_s,
            **({} if one.call is None else one.call.facts()),
        }
        for org_id, job_id, one in batch
    ]  # fmt: skip
    asked = {job_id: one for _, job_id, one in batch}
    placed = {}
    for row in await tx.all(SUBMIT_MANY, [tx.ctx, orjson.dumps(rows).decode()]):
        one = asked[row["job_id"]]
        placed[row["job_id"]] = Submitted(hold_mc=one.hold_mc, wait_s=one.wait_s, replayed=False, **row)
    return placed


async def get(tx: Tx, app_id: UUID, job_id: UUID, external_id: str | None = None) -> Job:
    """One job of this app, and of this end user when one is named. Raises JobNotFound."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM {SOURCE} WHERE j.org_id = %(org)s AND j.id = %(job)s AND j.app_id = %(app)s"
        " AND (%(user)s::text IS NULL OR u.external_id = %(user)s)",
        {"org": tx.org_id, "job": job_id, "app": app_id, "user": external_id},
    )
    if row is None:
        raise JobNotFound(str(job_id))
    return Job(**row)


async def list_of_app(
    tx: Tx, app_id: UUID, *, external_id: str | None, state: str | None, limit: int, before: UUID | None
) -> list[Job]:
    """Newest first, older than the job `before`; one end user's when one is named, else the whole app's."""
    user_id = None
    if external_id is not None:  # the plan is for this very user: the statistics know who has few jobs
        user_id = await end_users.find_id(tx, app_id, external_id)
        if user_id is None:
            return []
    owner = "j.app_id = %(app)s" if user_id is None else "j.end_user_id = %(user)s"
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM {SOURCE} WHERE j.org_id = %(org)s AND {owner} AND j.id < %(before)s"
        f" AND (%(state)s::text IS NULL OR j.state = %(state)s){STILL_OPEN if state in OPEN else ''} ORDER BY j.id DESC LIMIT %(limit)s",
        {"org": tx.org_id, "app": app_id, "user": user_id, "state": state, "limit": limit,
         "before": before or UUID(int=2**128 - 1)},
    )  # fmt: skip
    return [Job(**row) for row in rows]


async def get_of_org(tx: Tx, job_id: UUID) -> Job:
    """One job of the organization, for its operator. Raises JobNotFound."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM {SOURCE} WHERE j.org_id = %(org)s AND j.id = %(job)s",
        {"org": tx.org_id, "job": job_id},
    )
    if row is None:
        raise JobNotFound(f"there is no job {job_id}")
    return Job(**row)


async def list_of_org(tx: Tx, *, app_id: UUID | None, state: str | None, limit: int) -> list[Job]:
    """Newest first, for an operator: one app's when it is named, else all of the organization's."""
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM {SOURCE} WHERE j.org_id = %(org)s AND (%(app)s::uuid IS NULL OR j.app_id = %(app)s)"
        f" AND (%(state)s::text IS NULL OR j.state = %(state)s){STILL_OPEN if state in OPEN else ''} ORDER BY j.id DESC LIMIT %(limit)s",
        {"org": tx.org_id, "app": app_id, "state": state, "limit": limit},
    )
    return [Job(**row) for row in rows]


async def cancel(tx: Tx, app_id: UUID | None, job_id: UUID, user_id: UUID | None = None) -> str:
    """`cancelled`, `requested` (a worker holds it and will be told), or `already_<state>`. Raises JobNotFound.

    `app_id` None: an operator cancels across the organization's apps.
    """
    row = await tx.get(
        "SELECT limner.cancel_job(%s, %s, %s, %s, %s, %s) AS outcome",
        [tx.ctx, app_id, user_id, job_id, ids.new(), ids.new()],
    )
    if row["outcome"] is None:
        raise JobNotFound(str(job_id))
    return str(row["outcome"])
