"""Deliveries: one for each event and endpoint, with every try. What a worker does to them names its fence.

`claim` belongs to the dispatch role (ids and leases, never URLs or payloads); the rest to whoever may see the organization.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from limner.db.tx import Row, Tx
from limner.events.log import Event
from limner.kit import ids

Outcome = Literal[
    "delivered", "http_3xx", "http_4xx", "http_5xx", "timeout", "connect_failed", "destination_not_allowed",
    "internal_error",
]  # fmt: skip
STATUSES = {"waiting": "waiting", "sending": "leased", "delivered": "delivered", "failed": "failed"}
"""Of a delivery, as it is told: the phase it is in."""
MAX_SPAN = 1000
"""Events that one call of `redeliver_span` looks at."""
SHOWN_ATTEMPTS = 20
SELECT = """
SELECT d.id, d.endpoint_id, d.event_id, v.type AS event, d.per_request, d.phase, d.next_at, d.created_at, d.finished_at,
       e.removed_at IS NOT NULL AS removed, (
         SELECT coalesce(jsonb_agg(jsonb_build_object('n', a.n, 'at', a.at, 'outcome', a.outcome, 'status', a.status,
                                                      'latency_ms', a.latency_ms) ORDER BY a.n), '[]')
           FROM (SELECT x.* FROM limner.webhook_attempt x WHERE x.org_id = d.org_id AND x.delivery_id = d.id
                  ORDER BY x.n DESC LIMIT %(shown)s) a) AS attempts
  FROM limner.webhook_delivery d JOIN limner.event v ON v.org_id = d.org_id AND v.id = d.event_id
  JOIN limner.webhook_endpoint e ON e.org_id = d.org_id AND e.id = d.endpoint_id
"""
ORDER = """
SELECT d.endpoint_id, d.attempts, CASE WHEN d.per_request THEN v.deliver_to ELSE e.url END AS url, e.secret IS NULL AS unsigned,
       v.id, v.type, v.subject_id, v.payload, v.created_at, o.seq
  FROM limner.webhook_delivery d JOIN limner.event v ON v.org_id = d.org_id AND v.id = d.event_id
  JOIN limner.webhook_endpoint e ON e.org_id = d.org_id AND e.id = d.endpoint_id
  LEFT JOIN limner.event_order o ON o.org_id = v.org_id AND o.subject_id = v.subject_id AND o.event_id = v.id
 WHERE d.org_id = %s AND d.id = %s AND d.phase = 'leased' AND d.fence = %s AND e.removed_at IS NULL AND (d.per_request OR e.is_enabled)
"""


class DeliveryNotFound(LookupError):
    """This app has no such delivery, or its webhook was removed."""


class EndpointOff(ValueError):
    """The webhook is turned off: turn it on first."""


class SpanTooOld(ValueError):
    """Of so long ago nobody knows any more what arrived."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed delivery. `tries`: how many there were in its present schedule."""

    org_id: UUID
    delivery_id: UUID
    fence: int
    tries: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be delivered where. `attempts`: all there ever were. `unsigned`: the endpoint has no secret yet."""

    endpoint_id: UUID
    attempts: int
    url: str
    unsigned: bool
    event: Event


@dataclass(frozen=True, slots=True)
class Ended:
    """How a try went. `again_s`: when to try next; None: not again. `gone`: the receiver answered 410."""

    outcome: Outcome
    status: int | None
    latency_ms: int
    again_s: float | None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """`id` is the receiver's `webhook-id` without `msg_`. `status`: one of STATUSES. `attempts`: the newest, oldest of them first."""

    id: UUID
    endpoint_id: UUID
    event_id: UUID
    event: str
    per_request: bool
    status: str
    next_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    attempts: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Span:
    """`queued` deliveries of a span; `last`: go on after this event, None at the end."""

    queued: int
    last: UUID | None


async def claim(
    tx: Tx, owner: str, limit: int, lease_s: float, at_once: int, back_s: float | None = None
) -> list[Lease]:
    """Lease up to `limit` deliveries that are due, endpoint after endpoint, at most `at_once` of each.

    `back_s`: endpoints whose turn came longer ago are not looked for this time; None: all are.
    """
    rows = await tx.all(
        "SELECT * FROM limner.claim_deliveries(%s, %s, %s, %s, %s::float8)", [owner, limit, lease_s, at_once, back_s]
    )
    return [Lease(**row) for row in rows]


async def find_order(tx: Tx, lease: Lease) -> Order | None:
    """What a lease is for; None when it was lost, or the endpoint was turned off or removed since."""
    row = await tx.find(ORDER, [tx.org_id, lease.delivery_id, lease.fence])
    if row is None or row["url"] is None:
        return None
    event = Event(**{name: row.pop(name) for name in ("id", "type", "subject_id", "payload", "created_at", "seq")})
    return Order(**row, event=event)


async def end(tx: Tx, lease: Lease, ended: Ended, off_after_s: float) -> str:
    """Record a try: "recorded", "off" (its endpoint was turned off by it), or "stale": nothing was written."""
    row = await tx.get(
        "SELECT limner.end_delivery(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) AS said",
        [tx.ctx, lease.delivery_id, lease.fence, ended.outcome, ended.status, ended.latency_ms, ended.again_s, ended.gone,
         off_after_s, ids.new()],
    )  # fmt: skip
    return str(row["said"])


async def list_of_endpoint(
    tx: Tx, endpoint_id: UUID, *, status: str | None = None, limit: int = 20, before: UUID | None = None
) -> list[Delivery]:
    """Newest first, older than the delivery `before`; `status`: one of STATUSES."""
    rows = await tx.all(
        SELECT + " WHERE d.org_id = %(org)s AND d.endpoint_id = %(endpoint)s AND d.id < %(before)s"
        " AND (%(phase)s::text IS NULL OR d.phase = %(phase)s) ORDER BY d.id DESC LIMIT %(limit)s",
        {"org": tx.org_id, "endpoint": endpoint_id, "before": before or UUID(int=2**128 - 1), "limit": limit,
         "phase": None if status is None else STATUSES[status], "shown": SHOWN_ATTEMPTS},
    )  # fmt: skip
    return [_delivery(row) for row in rows]


async def list_of_subject(tx: Tx, subject_id: UUID, limit: int = 100) -> list[Delivery]:
    """What was delivered of the events of one job (or other subject), oldest first."""
    rows = await tx.all(
        SELECT + " WHERE d.org_id = %(org)s AND d.event_id IN (SELECT x.id FROM limner.event x WHERE x.org_id = %(org)s"
        " AND x.subject_id = %(subject)s) ORDER BY d.id LIMIT %(limit)s",
        {"org": tx.org_id, "subject": subject_id, "limit": limit, "shown": SHOWN_ATTEMPTS},
    )
    return [_delivery(row) for row in rows]


async def redeliver(tx: Tx, app_id: UUID | None, delivery_id: UUID) -> str:
    """Send it once more under its own id: the status it has then. `app_id` None: an operator's.

    Raises DeliveryNotFound, EndpointOff.
    """
    row = await tx.get("SELECT limner.redeliver(%s, %s, %s) AS said", [tx.ctx, app_id, delivery_id])
    if row["said"] is None:
        raise DeliveryNotFound(f"there is no delivery {delivery_id}")
    if row["said"] == "off":
        raise EndpointOff("the webhook is turned off")
    return _status(row["said"])


async def redeliver_span(
    tx: Tx, app_id: UUID | None, endpoint_id: UUID, since: datetime, until: datetime, *, after: UUID | None = None,
    everything: bool = False,
) -> Span:  # fmt: skip
    """Send what an endpoint missed of a span's events (`until` excluded), with `everything` also what arrived; MAX_SPAN a call.

    Raises DeliveryNotFound when this app has no such endpoint, EndpointOff.
    """
    row = await tx.find(
        "SELECT * FROM limner.redeliver_span(%s, %s, %s, %s, %s, %s, %s, %s)",
        [tx.ctx, app_id, endpoint_id, since, until, after, everything, MAX_SPAN],
    )
    if row is None:
        raise DeliveryNotFound(f"there is no webhook {endpoint_id}")
    if row["outcome"] == "off":
        raise EndpointOff("the webhook is turned off")
    return Span(row["queued"], row["last"])


def check_span(since: datetime, now: datetime, keep_days: int) -> None:
    """Raises SpanTooOld where deliveries of `since` may be forgotten; `keep_days` 0: none ever are."""
    if keep_days and since < now - timedelta(days=keep_days):
        raise SpanTooOld(f"must be within the last {keep_days} days: what was delivered before is forgotten")


async def forget(tx: Tx, keep_days: int, limit: int) -> int:
    """Forget up to `limit` deliveries that ended more than `keep_days` ago, with their tries: how many those were."""
    row = await tx.get("SELECT limner.forget_deliveries(%s, %s, %s) AS gone", [tx.ctx, keep_days, limit])
    return int(row["gone"])


def _delivery(row: Row) -> Delivery:
    waiting = row["phase"] == "waiting"
    abandoned = row.pop("removed") and waiting  # nothing is claimed for a webhook that is not there any more
    next_at = row.pop("next_at")
    status = "failed" if abandoned else _status(row.pop("phase"))
    row.pop("phase", None)
    return Delivery(**row, status=status, next_at=next_at if waiting and not abandoned else None)


def _status(phase: str) -> str:
    return next(status for status, name in STATUSES.items() if name == phase)
