"""What OpenAPI says of the webhook endpoints."""

from typing import Any

from starlette.responses import Response

from limner.events.deliveries import STATUSES
from limner.hub import docs, schemas, webhooks_schemas
from limner.hub.webhooks_schemas import CHANGE, CREATE, SPAN

REASONS = docs.REASONS | {
    409: "`webhook_exists`, `too_many_webhooks`, `default_webhook` (it cannot be removed), or `webhook_disabled`.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.Problem, "description": REASONS[status]} for status in (400, 401, 403, *statuses, 503)
    }


def _body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}},
    }


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


CREATE_WEBHOOK: dict[str, Any] = {
    "summary": "Add a webhook",
    "description": "The URL is checked: https, a public host name, none of limner's own. Its secret is in the answer, and at"
    " `/secret` whenever it is needed.",
    "status_code": 201,
    "response_model": webhooks_schemas.WebhookWithSecret,
    "responses": {
        201: {"headers": {"Location": {"description": "Where the webhook is.", "schema": {"type": "string"}}}},
        **_errors(408, 409, 413, 415),
    },
    "openapi_extra": _body(
        CREATE, {"url": "https://hooks.example.com/limner", "event_types": ["job.completed", "job.failed"]}
    ),
}
LIST_WEBHOOKS: dict[str, Any] = {
    "summary": "List webhooks",
    "description": "The app's own first; it is there from the first look at the list on.",
    "response_model": webhooks_schemas.WebhookList,
    "responses": _errors(429),
}
GET_WEBHOOK: dict[str, Any] = {
    "summary": "Get a webhook",
    "response_model": webhooks_schemas.Webhook,
    "responses": _errors(404, 429),
}
CHANGE_WEBHOOK: dict[str, Any] = {
    "summary": "Change a webhook",
    "description": "What is given is changed. Turned on again, a webhook is sent what waited for it.",
    "response_model": webhooks_schemas.Webhook,
    "responses": _errors(404, 408, 409, 413, 415),
    "openapi_extra": _body(CHANGE, {"description": "Orders", "enabled": True}),
}
REMOVE_WEBHOOK: dict[str, Any] = {
    "summary": "Remove a webhook",
    "description": "Nothing more is sent there. Receipts still tell what was.",
    "status_code": 204,
    "response_class": Response,
    "responses": _errors(404, 409),
}
ROTATE_WEBHOOK: dict[str, Any] = {
    "summary": "Give a webhook a new secret",
    "description": "The old one signs beside it for a day, so that receivers can change over.",
    "response_model": webhooks_schemas.WebhookWithSecret,
    "responses": _errors(404),
}
GET_WEBHOOK_SECRET: dict[str, Any] = {
    "summary": "A webhook's secret",
    "response_model": webhooks_schemas.WebhookSecret,
    "responses": _errors(404, 429),
}
LIST_DELIVERIES: dict[str, Any] = {
    "summary": "What was sent to a webhook",
    "description": "Newest first, each with its tries.",
    "response_model": webhooks_schemas.DeliveryPage,
    "responses": _errors(404, 429),
    "openapi_extra": {
        "parameters": [
            _query("status", {"type": "string", "enum": list(STATUSES)}, "Only these."),
            *docs.page("Deliveries"),
        ]
    },
}
REDELIVER: dict[str, Any] = {
    "summary": "Send a delivery once more",
    "description": "Under the same id, whatever became of it before; the schedule of its tries begins anew.",
    "status_code": 202,
    "response_model": webhooks_schemas.Redelivered,
    "responses": _errors(404, 409),
}
REDELIVER_SPAN: dict[str, Any] = {
    "summary": "Send what a webhook missed",
    "description": "Of the events since a moment, those it asks for and did not get: also what happened while it was turned off or"
    " not there yet. At most 1,000 events a call; `next_cursor` says that there are more.",
    "status_code": 202,
    "response_model": webhooks_schemas.SpanRedelivered,
    "responses": _errors(404, 408, 409, 413, 415),
    "openapi_extra": _body(SPAN, {"since": "2026-11-19T00:00:00Z", "until": "2026-11-20T00:00:00Z"}),
}
