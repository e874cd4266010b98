"""What the event log itself announces, beside what each domain does. Payloads carry ids and facts."""

from limner.events.declared import Declared

WEBHOOK_ENDPOINT_DISABLED = "webhook.endpoint_disabled"
_DISABLED = {
    "type": "object",
    "properties": {
        "endpoint_id": {"type": "string", "format": "uuid", "description": "The webhook's id."},
        "reason": {"enum": ["gone", "failing"]},
    },
    "required": ["endpoint_id", "reason"],
    "additionalProperties": False,
}
CATALOGUE: dict[str, Declared] = {
    WEBHOOK_ENDPOINT_DISABLED: Declared(
        WEBHOOK_ENDPOINT_DISABLED,
        "A webhook was turned off: its receiver said that it is gone, or failed for days.",
        _DISABLED,
    )
}
"""Event types, what each means and carries; docs/reference/events.md says more."""
