"""What the hub announces. Every event is written in the transaction that made it true.

Payloads carry ids and facts, never a prompt or an output.
"""

from limner.events import catalogue

JOB_STARTED = "job.started"
JOB_ATTEMPT_FAILED = "job.attempt_failed"
JOB_COMPLETED = "job.completed"
JOB_FAILED = "job.failed"
JOB_CANCELLED = "job.cancelled"

CATALOGUE: dict[str, str] = {
    JOB_STARTED: "A worker began the job's first run.",
    JOB_ATTEMPT_FAILED: "A provider failed; another provider or another run may follow.",
    JOB_COMPLETED: "The outputs are stored and the charge is settled.",
    JOB_FAILED: "The job ended without a result; the hold was released.",
    JOB_CANCELLED: "The job was cancelled; the hold was released.",
}
"""Event types and what each means; docs/reference/events.md says more."""

ANNOUNCED: dict[str, str] = {**CATALOGUE, **catalogue.CATALOGUE}
"""Everything that is announced, by whomever: what a webhook may ask for."""
