"""Batches as their owner sees them: submit, get, list, items, cancel. Amounts in milli-credits.

A batch is jobs that were accepted together or not at all; each is settled by itself (docs/decisions/0026).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.hub import jobs
from limner.hub.jobs import Job, Submission
from limner.kit import ids
from limner.ledger import refusals
from limner.tenancy import end_users

SUBMIT = """
SELECT * FROM limner.submit_batch(%s, %s, %s, %s, %s, %s, %s, %s::text::json, %s::text::json,
                                  %s::uuid[], %s::text[], %s::text[], %s::int[], %s::int[], %s::bytea[])
"""
COUNTED = """
SELECT b.id, b.app_id, b.end_user_id, b.items, b.hold_mc, b.webhook_url, b.request_id, b.cancel_requested_at, b.created_at, b.finished_at,
       u.external_id, coalesce(c.queued, 0) AS queued, coalesce(c.running, 0) AS running, coalesce(b.succeeded, c.succeeded) AS succeeded,
       coalesce(b.failed, c.failed) AS failed, coalesce(b.cancelled, c.cancelled) AS cancelled, coalesce(c.open_mc, 0) AS open_mc,
       coalesce(b.charged_mc, c.charged_mc) AS charged_mc
  FROM limner.batch b LEFT JOIN limner.end_user u ON u.org_id = b.org_id AND u.id = b.end_user_id
  LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE j.state = 'queued') AS queued, count(*) FILTER (WHERE j.state = 'running') AS running,
           count(*) FILTER (WHERE j.state = 'succeeded') AS succeeded, count(*) FILTER (WHERE j.state = 'failed') AS failed,
           count(*) FILTER (WHERE j.state = 'cancelled') AS cancelled, coalesce(sum(j.price_final_mc), 0)::bigint AS charged_mc,
           coalesce(sum(j.price_hold_mc) FILTER (WHERE j.finished_at IS NULL), 0)::bigint AS open_mc
      FROM limner.batch_item i JOIN limner.job j ON j.org_id = i.org_id AND j.id = i.job_id
     WHERE b.finished_at IS NULL AND i.org_id = b.org_id AND i.batch_id = b.id) c ON true
"""
ITEMS = f"""
SELECT i.place, {jobs.COLUMNS} FROM limner.batch_item i JOIN limner.job j ON j.org_id = i.org_id AND j.id = i.job_id
  LEFT JOIN limner.job_queue q ON q.org_id = j.org_id AND q.job_id = j.id
  LEFT JOIN limner.end_user u ON u.org_id = j.org_id AND u.id = j.end_user_id
 WHERE i.org_id = %(org)s AND i.batch_id = %(batch)s AND i.place > %(after)s AND (%(state)s::text IS NULL OR j.state = %(state)s)
 ORDER BY i.place LIMIT %(limit)s
"""
TRIES = 3
ASKED_AT_ONCE = 100
"""Items of a batch that one statement closes or asks to stop."""
ROUNDS = 50
"""Of those: what is still open then, because somebody holds it all the time, a worker comes back to."""


class BatchNotFound(LookupError):
    """This app (and end user, when one is named) has no such batch."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A batch as parsed, priced and hashed. Whose, when, in what order, held to which limits: as the first of `items`."""

    items: Sequence[Submission]
    idempotency_key: str | None
    request_hash: bytes
    webhook_url: str | None

    @property
    def hold_mc(self) -> int:
        return sum(item.hold_mc for item in self.items)


@dataclass(frozen=True, slots=True)
class Submitted:
    """`available_mc` is what the paying wallet had left right after the holds, also when this is a replay."""

    batch_id: UUID
    replayed: bool
    items: int
    hold_mc: int
    available_mc: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and how far its items are. `hold_mc` is what was held for all, `open_mc` what still is, `charged_mc` what they cost."""

    id: UUID
    app_id: UUID
    end_user_id: UUID | None
    items: int
    hold_mc: int
    webhook_url: str | None
    request_id: str | None
    cancel_requested_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    external_id: str | None
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    open_mc: int
    charged_mc: int

    @property
    def status(self) -> str:
        """`running`, `cancelling`, `completed`, or `cancelled`: items were cancelled because the batch was."""
        if self.finished_at is None:
            return "running" if self.cancel_requested_at is None else "cancelling"
        return "cancelled" if self.cancel_requested_at is not None and self.cancelled else "completed"


@dataclass(frozen=True, slots=True)
class Item:
    """`place`: from 0, as it was ordered."""

    place: int
    job: Job


async def submit(db: Database, org_id: UUID, wanted: Wanted) -> Submitted:
    """All of it or nothing, in one commit; sent again under the same id when the answer was lost.

    Raises refusals.TooFewCredits, refusals.Inactive, refusals.Reused, refusals.TooMany, and DatabaseUnavailable.
    """
    batch_id, parameters = ids.new(), _parameters(wanted)
    for attempt in range(TRIES):
        try:
            async with db.tenant_single(org_id) as tx:
                row = await _get(tx, SUBMIT, [tx.ctx, batch_id, *parameters])
        except psycopg.OperationalError as error:
            if attempt == TRIES - 1:
                raise DatabaseUnavailable(str(error)) from error
            await asyncio.sleep(0.05 * 2**attempt)
            continue
        submitted = Submitted(replayed=row.pop("outcome") == "replayed", **row)
        return replace(submitted, replayed=False) if submitted.batch_id == batch_id else submitted
    raise AssertionError


async def get(tx: Tx, app_id: UUID | None, batch_id: UUID, external_id: str | None = None) -> Batch:
    """One batch of this app (None: of the organization's), and of this end user when one is named. Raises BatchNotFound."""
    row = await tx.find(
        f"{COUNTED} WHERE b.org_id = %(org)s AND b.id = %(batch)s AND (%(app)s::uuid IS NULL OR b.app_id = %(app)s)"
        " AND (%(user)s::text IS NULL OR u.external_id = %(user)s)",
        {"org": tx.org_id, "batch": batch_id, "app": app_id, "user": external_id},
    )
    if row is None:
        raise BatchNotFound(f"there is no batch {batch_id}")
    return Batch(**row)


async def list_of_app(
    tx: Tx, app_id: UUID | None, *, external_id: str | None, limit: int, before: UUID | None
) -> list[Batch]:
    """Newest first, older than the batch `before`; one end user's of the app when one is named, else the whole app's or organization's."""
    user_id = None
    if external_id is not None:
        user_id = None if app_id is None else await end_users.find_id(tx, app_id, external_id)
        if user_id is None:
            return []
    owner = "(%(app)s::uuid IS NULL OR b.app_id = %(app)s)" if user_id is None else "b.end_user_id = %(user)s"
    rows = await tx.all(
        f"{COUNTED} WHERE b.org_id = %(org)s AND {owner} AND b.id < %(before)s ORDER BY b.id DESC LIMIT %(limit)s",
        {"org": tx.org_id, "app": app_id, "user": user_id, "before": before or UUID(int=2**128 - 1), "limit": limit},
    )
    return [Batch(**row) for row in rows]


async def list_items(tx: Tx, batch_id: UUID, *, state: str | None, limit: int, after: int = -1) -> list[Item]:
    """In their order, behind the place `after`."""
    rows = await tx.all(ITEMS, {"org": tx.org_id, "batch": batch_id, "after": after, "state": state, "limit": limit})
    return [Item(row.pop("place"), Job(**row)) for row in rows]


async def cancel(
    db: Database, org_id: UUID, app_id: UUID | None, batch_id: UUID, user_id: UUID | None = None,
    role: str = "limner_api",
) -> str:  # fmt: skip
    """`cancelled`, `requested` (workers hold some and will be told), or `already_<status>`. Raises BatchNotFound.

    In steps of a commit each. What a step began goes on also when nobody asks for the next one: a worker sees to it.
    """
    for _ in range(ROUNDS):
        async with db.tenant_single(org_id, role) as tx:
            row = await tx.get(
                "SELECT * FROM limner.cancel_batch(%s, %s, %s, %s, %s, %s)",
                [tx.ctx, app_id, user_id, batch_id, ids.new(), ASKED_AT_ONCE],
            )
        if row["outcome"] is None:
            raise BatchNotFound(f"there is no batch {batch_id}")
        if not row["still"]:
            break
        await asyncio.sleep(0.005)
    return str(row["outcome"])


def _parameters(wanted: Wanted) -> list[Any]:
    """Of `submit_batch`, behind the context and the id. Each item's job has its id from here, in their order."""
    first, limits = wanted.items[0], wanted.items[0].limits
    job_ids = sorted(ids.new() for _ in wanted.items)
    items = [
        {"job": job_id, "model_id": one.model_id, "model": one.model, "kind": one.kind, "unit_price": one.unit_price_mc,
         "hold": one.hold_mc, "input": one.input, "wait": one.wait_s, "deadline_s": one.deadline_s,
         "cancel_after": one.cancel_after_s, "token_prices": one.token_prices, "terms": one.terms}
        for job_id, one in zip(job_ids, wanted.items, strict=True)
    ]  # fmt: skip
    facts = {
        "priority": first.priority, "run_at": first.run_at, "max_runs": first.max_runs,
        "webhook_url": wanted.webhook_url, "request_id": first.request_id, "traceparent": first.traceparent,
        "user_rate": limits.user_per_min, "app_rate": limits.app_per_min, "org_rate": limits.org_per_min,
        "max_open": limits.max_open,
    }  # fmt: skip
    named = [
        (job_id, name, blob) for job_id, one in zip(job_ids, wanted.items, strict=True) for name, blob in one.images
    ]
    pictures: list[Any] = [None] * 6
    if named:
        pictures = [
            [job_id for job_id, _, _ in named], [name for _, name, _ in named], [blob.media_type for _, _, blob in named],
            [blob.width for _, _, blob in named], [blob.height for _, _, blob in named], [blob.data for _, _, blob in named],
        ]  # fmt: skip
    return [
        first.app_id, first.external_id, ids.new(), wanted.idempotency_key, wanted.request_hash,
        orjson.dumps(items).decode(), orjson.dumps(facts).decode(), *pictures,
    ]  # fmt: skip


async def _get(tx: Tx, query: str, parameters: list[Any]) -> dict[str, Any]:
    try:
        return await tx.get(query, parameters)
    except psycopg.Error as error:
        raise refusals.read(error) from error
