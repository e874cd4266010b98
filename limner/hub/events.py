"""What the hub announces. Every event is written in the transaction that made it true.

Payloads carry ids and facts, never a prompt or an output.
"""

from typing import Any

from limner.events import catalogue
from limner.events.declared import Declared
from limner.events.log import Event
from limner.kit import money

JOB_STARTED = "job.started"
JOB_ATTEMPT_FAILED = "job.attempt_failed"
JOB_COMPLETED = "job.completed"
JOB_FAILED = "job.failed"
JOB_CANCELLED = "job.cancelled"
BATCH_COMPLETED = "batch.completed"
BATCH_CANCELLED = "batch.cancelled"
TERMINAL = frozenset({JOB_COMPLETED, JOB_FAILED, JOB_CANCELLED})

_ID = {"type": "string", "format": "uuid"}
_CODE = {"type": "string", "description": "Stable, in snake_case."}


def _facts(**properties: Any) -> dict[str, Any]:
    named = {"job_id": _ID, **properties}
    return {"type": "object", "properties": named, "required": list(named), "additionalProperties": False}


def _ended(status: str, **properties: Any) -> dict[str, Any]:
    charged = {"type": "integer", "minimum": 0, "description": "Whole credits, rounded down."}
    return _facts(status={"const": status}, tokens_charged=charged, **properties)


_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = dict.fromkeys(("total", "succeeded", "failed", "cancelled"), _COUNT)
_BATCH = {
    "type": "object",
    "properties": {
        "batch_id": _ID, **_COUNTS,
        "tokens_charged": _COUNT | {"description": "Of all items together: whole credits, rounded down."},
    },
    "required": ["batch_id", *_COUNTS, "tokens_charged"],
    "additionalProperties": False,
}  # fmt: skip

_DECLARED = (
    Declared(JOB_STARTED, "A worker began the job's first run.", _facts()),
    Declared(
        JOB_ATTEMPT_FAILED,
        "A provider failed; another provider or another run may follow.",
        _facts(provider={"type": "string"}, run={"type": "integer", "minimum": 1}, code=_CODE),
    ),
    Declared(JOB_COMPLETED, "The outputs are stored and the charge is settled.", _ended("succeeded")),
    Declared(JOB_FAILED, "The job ended without a result; the hold was released.", _ended("failed", code=_CODE)),
    Declared(JOB_CANCELLED, "The job was cancelled; the hold was released.", _ended("cancelled", code=_CODE)),
    Declared(BATCH_COMPLETED, "All items of a batch have ended, each in its own way.", _BATCH),
    Declared(BATCH_CANCELLED, "A batch was cancelled, and its last open item has ended.", _BATCH),
)
CATALOGUE: dict[str, Declared] = {one.type: one for one in _DECLARED}
"""Event types, what each means and carries; docs/reference/events.md says more."""
ANNOUNCED: dict[str, Declared] = {**CATALOGUE, **catalogue.CATALOGUE}
"""Everything that is announced, by whomever: what a log tells, and what a webhook may ask for."""


def data(event: Event) -> dict[str, Any]:
    """An event's payload as clients get it: what `Declared.data` describes."""
    facts = dict(event.payload)
    if "charged_mc" in facts:
        facts["tokens_charged"] = money.whole(facts.pop("charged_mc"))
        code = facts.pop("error_code", None)
        if event.type in {JOB_FAILED, JOB_CANCELLED}:
            facts["code"] = code
    return facts


def body(event: Event) -> dict[str, Any]:
    """An event as pages and streams tell it."""
    return {"id": event.id, "seq": event.seq, "type": event.type, "timestamp": event.created_at, "data": data(event)}
