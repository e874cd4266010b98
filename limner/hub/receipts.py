"""A job's receipt: every run and attempt, every transfer, what was used, and the rule that chose the provider."""

from typing import Any

from limner.db.tx import Row, Tx
from limner.events import deliveries, log
from limner.events.deliveries import Delivery
from limner.hub.jobs import Job
from limner.hub.pricing import Rates
from limner.kit import money
from limner.tenancy import organizations

ATTEMPTS = """
SELECT c.run, c.step, c.provider, c.provider_model, c.send_no, c.rule, c.own_key, c.state, c.latency_ms, c.cost_micro_usd, c.error_code,
       c.error_message, c.created_at, c.finished_at
  FROM limner.provider_call c WHERE c.org_id = %s AND c.job_id = %s ORDER BY c.created_at LIMIT 1000
"""
TRANSFERS = """
SELECT x.id, x.kind, x.amount_mc, x.debit_available_mc, x.credit_available_mc, x.reason, x.created_at FROM limner.transfer x
 WHERE x.org_id = %(org)s AND (x.id = %(job)s OR x.hold_id = %(job)s OR (x.job_id = %(job)s AND x.kind = 'refund'))
 ORDER BY x.created_at, x.id LIMIT 1000
"""
USAGE = """
SELECT u.kind, u.quantity, u.unit, u.price_mc, u.cost_micro_usd FROM limner.usage_record u
 WHERE u.org_id = %s AND u.job_id = %s ORDER BY u.seq LIMIT 100
"""


async def build(tx: Tx, job: Job, *, costs: bool | None = None) -> dict[str, Any]:
    """The receipt of a job that `jobs.get` returned. Credits exactly.

    `costs`: whether it says what providers cost: True for operators; None: where the organization may see it. What it paid itself,
    with a key of its own, it always may.
    """
    key = [tx.org_id, job.id]
    if costs is None:
        costs = await organizations.shows_costs(tx)
    attempts = await tx.all(ATTEMPTS, key)
    transfers = await tx.all(TRANSFERS, {"org": tx.org_id, "job": job.id})
    usage = await tx.all(USAGE, key)
    history = await log.list_of_subject(tx, job.id)
    sent = await deliveries.list_of_subject(tx, job.id)
    before_mc = next((t["debit_available_mc"] + t["amount_mc"] for t in transfers if t["kind"] == "hold"), None)
    after_mc = next((_available(t) for t in reversed(transfers)), None)
    receipt: dict[str, Any] = {
        "job_id": job.id,
        "status": job.state,
        "model": job.model,
        "user_id": job.external_id,
        "created_at": job.created_at,
        "completed_at": job.finished_at,
        "provider_used": job.provider_used,
        "rule": next((a["rule"] for a in attempts if a["state"] == "done"), None),
        "runs": job.runs,
        "credits": {
            "before": _credits(before_mc),
            "held": _credits(job.price_hold_mc),
            "charged": _credits(job.price_final_mc),
            "refunded": _credits(job.refunded_mc),
            "after": _credits(after_mc),
            "unit_price": _credits(job.unit_price_mc),
        },
        "attempts": [_attempt(row, costs=costs) for row in attempts],
        "transfers": [_transfer(row) for row in transfers],
        "usage": [_usage(row, costs=costs) for row in usage],
        "events": [{"type": event.type, "at": event.created_at} for event in history],
        "webhooks": [webhook(delivery) for delivery in sent],
        "request_id": job.request_id,
    }
    if job.deadline is not None:
        receipt["deadline"] = job.deadline
    if job.token_prices is not None and "unit" in job.token_prices:
        sold = job.token_prices
        receipt["time_price"] = {"credits": money.exact(sold["price_mc"]), "unit": sold["unit"]}
    elif job.token_prices is not None:
        receipt["token_prices"] = _prices(Rates(**job.token_prices))
    if job.terms and "tone" in job.terms:
        receipt["tone"] = job.terms["tone"]
    if costs:
        receipt["provider_cost_micro_usd"] = sum(row["cost_micro_usd"] or 0 for row in attempts if not row["own_key"])
    if any(row["own_key"] for row in attempts):
        receipt["own_cost_micro_usd"] = sum(row["cost_micro_usd"] or 0 for row in attempts if row["own_key"])
    return receipt


def _credits(mc: int | None) -> str | None:
    """Exact, as a decimal string: floats do not carry money."""
    return None if mc is None else money.exact(mc)


def _prices(rates: Rates) -> dict[str, str]:
    """Credits: of a call, and of a million tokens each."""
    by_name = (rates.price_mc, rates.input_price_mc, rates.cached_price_mc, rates.output_price_mc)
    return dict(zip(("call", "input", "cached", "output"), map(money.exact, by_name), strict=True))


def _available(row: Row) -> int:
    value = row["credit_available_mc"] if row["kind"] == "refund" else row["debit_available_mc"]
    return int(value)


def _attempt(row: Row, *, costs: bool) -> dict[str, Any]:
    attempt: dict[str, Any] = {
        "run": row["run"],
        "provider": row["provider"],
        "provider_model": row["provider_model"],
        "send": row["send_no"],
        "rule": row["rule"],
        "key": "own" if row["own_key"] else "platform",
        "outcome": row["state"],
        "latency_ms": row["latency_ms"],
        "started_at": row["created_at"],
        "finished_at": row["finished_at"],
    }
    if row["error_code"] and row["state"] != "done":  # a task may deliver after it could not be asked after
        attempt["error"] = {"code": row["error_code"], "message": row["error_message"]}
    if costs or row["own_key"]:
        attempt["cost_micro_usd"] = row["cost_micro_usd"]
    return attempt


def _transfer(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "kind": row["kind"],
        "credits": _credits(row["amount_mc"]),
        "balance_after": _credits(_available(row)),
        "reason": row["reason"],
        "at": row["created_at"],
    }


def _usage(row: Row, *, costs: bool) -> dict[str, Any]:
    usage = {
        "kind": row["kind"],
        "quantity": row["quantity"],
        "unit": row["unit"],
        "credits": _credits(row["price_mc"]),
    }
    return usage | ({"cost_micro_usd": row["cost_micro_usd"]} if costs else {})


def webhook(delivery: Delivery) -> dict[str, Any]:
    """How a delivery stands on a receipt."""
    return {
        "delivery_id": delivery.id,
        "webhook_id": delivery.endpoint_id,
        "to": "request" if delivery.per_request else "webhook",
        "event": delivery.event,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "next_attempt_at": delivery.next_at,
    }
