"""Webhooks on the wire: what is sent to `/api/v1/webhooks` and what it answers."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from limner.events.deliveries import Delivery, Outcome
from limner.events.endpoints import Endpoint
from limner.hub.events import ANNOUNCED
from limner.kit import signing
from limner.kit.signing import Keys

URL = {
    "type": "string",
    "minLength": 1,
    "maxLength": 2048,
    "description": "https, a public host name, port 443 or 8443.",
}
DESCRIPTION = {"type": "string", "maxLength": 500, "description": "For yourself."}
EVENT_TYPES = {
    "type": "array", "items": {"type": "string", "enum": sorted(ANNOUNCED)}, "uniqueItems": True, "maxItems": 50,
    "description": "What to hear of; empty: a job's three ends (`job.completed`, `job.failed`, `job.cancelled`).",
}  # fmt: skip
CREATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "url": URL,
        "description": {**DESCRIPTION, "default": ""},
        "event_types": {**EVENT_TYPES, "default": []},
        "ed25519": {"type": "boolean", "default": False, "description": "Sign by ed25519 (`v1a`) too."},
    },
    "required": ["url"],
    "additionalProperties": False,
}
CHANGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "url": {**URL, "type": ["string", "null"], "description": "Null takes it from the app's own webhook only."},
        "description": DESCRIPTION,
        "event_types": EVENT_TYPES,
        "enabled": {"type": "boolean", "description": "Off: what is due waits; on: it is sent."},
    },
    "minProperties": 1,
    "additionalProperties": False,
}
SPAN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "since": {
            "type": "string",
            "maxLength": 40,
            "description": "RFC 3339 with an offset; as late as deliveries are kept.",
        },
        "until": {"type": "string", "maxLength": 40, "description": "Excluded; absent: now."},
        "everything": {"type": "boolean", "default": False, "description": "What arrived, too; else what was missed."},
        "cursor": {"type": "string", "maxLength": 36, "description": "`next_cursor` of the call before."},
    },
    "required": ["since"],
    "additionalProperties": False,
}
MADE: JsonDict = {
    "id": "019a1f85-126f-701c-b732-d9e071145302", "kind": "extra", "url": "https://hooks.example.com/limner",
    "description": "", "event_types": [], "enabled": True, "created_at": "2026-11-20T12:00:00Z",
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
}  # fmt: skip
DeliveryStatus = Literal["waiting", "sending", "delivered", "failed"]


class Webhook(BaseModel):
    """`kind` app: the app's own, whose secret also signs what goes to a request's `webhook_url`; its `url` may be null."""

    id: UUID
    kind: Literal["app", "extra"]
    url: str | None
    description: str
    event_types: list[str]
    enabled: bool
    disabled_reason: Literal["gone", "failing", "by_hand"] | None = None
    failing_since: datetime | None = Field(default=None, description="Nothing but failures since then.")
    last_success_at: datetime | None = None
    public_key: str | None = Field(default=None, description="`whpk_…`, where it signs by ed25519.")
    previous_secret_until: datetime | None = Field(
        default=None, description="The secret before the last rotation signs too, until then."
    )
    created_at: datetime


class WebhookWithSecret(Webhook):
    """A webhook with the secret that signs its deliveries."""

    model_config = ConfigDict(json_schema_extra={"examples": [MADE]})
    secret: str


class WebhookList(BaseModel):
    webhooks: list[Webhook]


class WebhookSecret(BaseModel):
    """`previous`: the secret before the last rotation, as long as it signs."""

    secret: str
    previous: str | None
    previous_until: datetime | None
    public_key: str | None


class DeliveryAttempt(BaseModel):
    """One try: a class, a status, a time. What the receiver said is not kept."""

    n: int
    at: datetime
    outcome: Outcome
    status: int | None
    latency_ms: int


class DeliveryBody(BaseModel):
    """`id` is the `webhook-id` header without `msg_`, the same for every try."""

    id: UUID
    webhook_id: UUID
    event_id: UUID
    event: str
    to: Literal["webhook", "request"] = Field(description="`request`: to the `webhook_url` of the job's own request.")
    status: DeliveryStatus
    attempts: list[DeliveryAttempt] = Field(description="The last twenty, oldest first.")
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None


class ReceiptWebhook(BaseModel):
    """What a job's receipt tells of one delivery."""

    delivery_id: UUID
    webhook_id: UUID
    to: Literal["webhook", "request"]
    event: str
    status: DeliveryStatus
    attempts: list[DeliveryAttempt]
    next_attempt_at: datetime | None


class DeliveryPage(BaseModel):
    deliveries: list[DeliveryBody]
    next_cursor: UUID | None


class Redelivered(BaseModel):
    id: UUID
    status: DeliveryStatus


class SpanRedelivered(BaseModel):
    """`next_cursor`: there is more; send it with the same `since` and `until`."""

    queued: int
    next_cursor: UUID | None


def webhook_body(endpoint: Endpoint) -> dict[str, Any]:
    """Without its secret."""
    return {
        "id": endpoint.id,
        "kind": endpoint.kind,
        "url": endpoint.url,
        "description": endpoint.description,
        "event_types": endpoint.event_types,
        "enabled": endpoint.is_enabled,
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": endpoint.failing_since,
        "last_success_at": endpoint.last_success_at,
        "public_key": None if endpoint.public_key is None else signing.public_text(endpoint.public_key),
        "previous_secret_until": endpoint.previous_until,
        "created_at": endpoint.created_at,
    }


def secret_body(endpoint: Endpoint, keys: Keys) -> dict[str, Any]:
    """The live secrets, newest first."""
    texts = [signing.secret_text(secret) for secret in keys.secrets]
    return {
        "secret": texts[0],
        "previous": texts[1] if len(texts) > 1 else None,
        "previous_until": endpoint.previous_until,
        "public_key": None if endpoint.public_key is None else signing.public_text(endpoint.public_key),
    }


def delivery_body(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "webhook_id": delivery.endpoint_id,
        "event_id": delivery.event_id,
        "event": delivery.event,
        "to": "request" if delivery.per_request else "webhook",
        "status": delivery.status,
        "attempts": delivery.attempts,
        "next_attempt_at": delivery.next_at,
        "created_at": delivery.created_at,
        "finished_at": delivery.finished_at,
    }
