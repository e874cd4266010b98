"""A batch's receipt: what was held for all, what came of each item, and what they used together."""

from typing import Any

from limner.db.tx import Tx
from limner.events import deliveries, log
from limner.hub import receipts
from limner.hub.batches import Batch
from limner.kit import money

ITEMS = """
SELECT i.place, j.id, j.model, j.state, j.price_hold_mc, j.price_final_mc, j.refunded_mc, j.runs, j.provider_used, j.error_code
  FROM limner.batch_item i JOIN limner.job j ON j.org_id = i.org_id AND j.id = i.job_id
 WHERE i.org_id = %s AND i.batch_id = %s ORDER BY i.place
"""
USAGE = """
SELECT u.model, u.provider, u.kind, u.unit, sum(u.quantity)::bigint AS quantity, sum(u.price_mc)::bigint AS price_mc,
       coalesce(sum(u.cost_micro_usd), 0)::bigint AS cost_micro_usd
  FROM limner.batch_item i JOIN limner.usage_record u ON u.org_id = i.org_id AND u.job_id = i.job_id
 WHERE i.org_id = %s AND i.batch_id = %s GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""


async def build(tx: Tx, batch: Batch) -> dict[str, Any]:
    """The receipt of a batch that `batches.get` returned. Credits exactly; provider cost where the organization may see it."""
    key = [tx.org_id, batch.id]
    organization = await tx.get("SELECT show_costs FROM limner.organization WHERE org_id = %s", [tx.org_id])
    costs = bool(organization["show_costs"])
    items = await tx.all(ITEMS, key)
    usage = await tx.all(USAGE, key)
    history = await log.list_of_subject(tx, batch.id)
    sent = await deliveries.list_of_subject(tx, batch.id)
    returned_mc = sum(
        row["price_hold_mc"] - row["price_final_mc"] for row in items if row["price_final_mc"] is not None
    )
    receipt: dict[str, Any] = {
        "batch_id": batch.id,
        "status": batch.status,
        "user_id": batch.external_id,
        "created_at": batch.created_at,
        "completed_at": batch.finished_at,
        "credits": {
            "held": money.exact(batch.hold_mc),
            "charged": money.exact(batch.charged_mc),
            "returned": money.exact(returned_mc),
            "on_hold": money.exact(batch.open_mc),
            "refunded": money.exact(sum(row["refunded_mc"] for row in items)),
        },
        "items": [
            {
                "index": row["place"], "job_id": row["id"], "model": row["model"], "status": row["state"], "runs": row["runs"],
                "held": money.exact(row["price_hold_mc"]),
                "charged": None if row["price_final_mc"] is None else money.exact(row["price_final_mc"]),
                "provider_used": row["provider_used"], "error": row["error_code"],
            }
            for row in items
        ],
        "usage": [
            {"model": row["model"], "provider": row["provider"], "kind": row["kind"], "unit": row["unit"],
             "quantity": row["quantity"], "credits": money.exact(row["price_mc"])}
            for row in usage
        ],
        "events": [{"type": event.type, "at": event.created_at} for event in history],
        "webhooks": [receipts.webhook(delivery) for delivery in sent],
        "request_id": batch.request_id,
    }  # fmt: skip
    if costs:
        receipt["provider_cost_micro_usd"] = sum(row["cost_micro_usd"] for row in usage)
    return receipt
