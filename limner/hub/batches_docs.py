"""Batches on the wire: what is answered, and what OpenAPI says of it."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from limner.hub import docs, jobs, schemas
from limner.hub.batch_submission import ENVELOPE
from limner.hub.batches import Batch, Item, Submitted
from limner.hub.docs import CANCEL_AFTER, IDEMPOTENCY_KEY, REASONS, REPLAYED, RETRY_AFTER, USER_ID
from limner.hub.webhooks_schemas import ReceiptWebhook
from limner.kit import money
from limner.media.urls import MediaUrls

BatchStatus = Literal["running", "cancelling", "completed", "cancelled"]
EXAMPLE: dict[str, Any] = {
    "model": "local/canvas",
    "items": [{"input": {"prompt": "A quiet harbour"}}, {"input": {"prompt": "A loud one", "size": 512}}],
    "idempotency_key": "req_abc123",
}


class BatchAccepted(BaseModel):
    """202 of a batch. `tokens_held` is what was put on hold for all items; `user_balance` what is left to spend."""

    batch_id: UUID
    status: Literal["running"]
    total: int
    tokens_held: int
    user_balance: int


class BatchProgress(BaseModel):
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class BatchBody(BaseModel):
    """A batch. `done` of `total` items have ended; `tokens_held` is what open items hold, `tokens_charged` what the others cost."""

    batch_id: UUID
    status: BatchStatus
    user_id: str | None
    total: int
    done: int
    progress: BatchProgress
    tokens_held: int
    tokens_charged: int
    created_at: datetime
    completed_at: datetime | None


class BatchPage(BaseModel):
    batches: list[BatchBody]
    next_cursor: UUID | None


class ItemBody(schemas.JobBody):
    """A job of a batch; `index` is its place in the request's `items`."""

    index: int


class ItemPage(BaseModel):
    items: list[ItemBody]
    next_cursor: str | None


class BatchCancelled(BaseModel):
    batch_id: UUID
    status: Literal["cancelled", "requested", "already_cancelled"]


class BatchCredits(BaseModel):
    """Exact decimals. `held` for all at first; `charged`, `returned` and still `on_hold` are its parts."""

    held: str
    charged: str
    returned: str
    on_hold: str
    refunded: str


class ReceiptItem(BaseModel):
    index: int
    job_id: UUID
    model: str
    status: schemas.Status
    runs: int
    held: str
    charged: str | None
    provider_used: str | None
    error: str | None


class BatchUsage(BaseModel):
    model: str
    provider: str
    kind: str
    unit: str
    quantity: int
    credits: str


class BatchEvent(BaseModel):
    type: str
    at: datetime


class BatchReceipt(BaseModel):
    """What came of a batch and what it cost; each item's own receipt says how."""

    batch_id: UUID
    status: BatchStatus
    user_id: str | None
    created_at: datetime
    completed_at: datetime | None
    credits: BatchCredits
    items: list[ReceiptItem]
    usage: list[BatchUsage]
    events: list[BatchEvent]
    webhooks: list[ReceiptWebhook]
    request_id: str | None
    provider_cost_micro_usd: int | None = Field(default=None, description="Where the organization may see costs.")


def accepted_body(submitted: Submitted) -> dict[str, Any]:
    return {
        "batch_id": submitted.batch_id,
        "status": "running",
        "total": submitted.items,
        "tokens_held": money.whole(submitted.hold_mc),
        "user_balance": money.whole(submitted.available_mc),
    }


def batch_body(batch: Batch) -> dict[str, Any]:
    return {
        "batch_id": batch.id,
        "status": batch.status,
        "user_id": batch.external_id,
        "total": batch.items,
        "done": batch.succeeded + batch.failed + batch.cancelled,
        "progress": {
            "queued": batch.queued, "running": batch.running, "succeeded": batch.succeeded, "failed": batch.failed,
            "cancelled": batch.cancelled,
        },
        "tokens_held": money.whole(batch.open_mc),
        "tokens_charged": money.whole(batch.charged_mc),
        "created_at": batch.created_at,
        "completed_at": batch.finished_at,
    }  # fmt: skip


def item_body(item: Item, urls: MediaUrls) -> dict[str, Any]:
    return {"index": item.place, **schemas.job_body(item.job, urls)}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = REASONS | {409: "The batch has ended already."}
    return {
        status: {"model": schemas.Problem, "description": reasons[status]} for status in (400, 401, 403, *statuses, 503)
    }


SUBMIT: dict[str, Any] = {
    "summary": "Submit a batch",
    "description": "Up to 1,000 jobs by one request: all are parsed, then the sum of their prices is held and all are queued in one"
    " commit, or nothing is. Each is charged by itself when it succeeds; what the others held comes back.",
    "response_model": BatchAccepted,
    "responses": {
        202: {"headers": {"Location": docs.header("Where the batch is."), "Idempotent-Replayed": REPLAYED}},
        **_errors(402, 408, 413, 415, 422, 429),
    },
    "openapi_extra": {
        "parameters": [USER_ID, IDEMPOTENCY_KEY, CANCEL_AFTER],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ENVELOPE, "example": EXAMPLE}},
        },
    },
}
LIST: dict[str, Any] = {
    "summary": "List batches",
    "description": "Newest first: one user's with `X-User-ID`, the whole app's without.",
    "response_model": BatchPage,
    "responses": _errors(429),
    "openapi_extra": {"parameters": [USER_ID, *docs.page("Batches")]},
}
GET: dict[str, Any] = {
    "summary": "Get a batch",
    "description": "How far its items are, and what they hold and cost by now. `Retry-After` while it is open.",
    "response_model": BatchBody,
    "responses": {200: {"headers": {"Retry-After": RETRY_AFTER}}, **_errors(404, 429)},
    "openapi_extra": {"parameters": [USER_ID]},
}
ITEMS: dict[str, Any] = {
    "summary": "A batch's items",
    "description": "In the order of the request, each as `GET /api/v1/jobs/{job_id}` shows it.",
    "response_model": ItemPage,
    "responses": _errors(404, 429),
    "openapi_extra": {
        "parameters": [
            USER_ID,
            docs.query("status", {"type": "string", "enum": list(jobs.STATES)}, "Only items in this state."),
            docs.query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "Items on a page."),
            docs.query(
                "cursor",
                {"type": "string", "pattern": "^[0-9]{0,9}$"},
                "`next_cursor` of the page before; empty for the first.",
            ),
        ]
    },
}
CANCEL: dict[str, Any] = {
    "summary": "Cancel a batch",
    "description": "Items that nobody works on are cancelled and cost nothing; workers are told to stop at the others. 200 `cancelled`"
    " when nothing is open any more, 202 `requested` while something is.",
    "response_model": BatchCancelled,
    "responses": {
        202: {"model": BatchCancelled, "description": "Workers have some items; what is delivered first is charged."},
        **_errors(404, 409),
    },
    "openapi_extra": {"parameters": [USER_ID]},
}
RECEIPT: dict[str, Any] = {
    "summary": "A batch's receipt",
    "description": "What was held for all, what came of each item, and what they used together.",
    "response_model": BatchReceipt,
    "responses": _errors(404, 429),
    "openapi_extra": {"parameters": [USER_ID]},
}
