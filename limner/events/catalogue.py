"""What the event log itself announces, beside what each domain does. Payloads carry ids and facts."""

WEBHOOK_ENDPOINT_DISABLED = "webhook.endpoint_disabled"

CATALOGUE: dict[str, str] = {
    WEBHOOK_ENDPOINT_DISABLED: "A webhook was turned off: its receiver said that it is gone, or failed for days.",
}
"""Event types and what each means; docs/reference/events.md says more."""
