"""Bodies on the wire (the wire's field names live here and nowhere else), for the answers and for OpenAPI."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from limner.hub.catalog import Model
from limner.hub.dry_run import Foreseen
from limner.hub.jobs import Job, Submission
from limner.kit import money
from limner.ledger.statements import Line
from limner.media.urls import MediaUrls

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Accepted(BaseModel):
    """202 of generate. `tokens_charged` is what was put on hold; `user_balance` what is left to spend."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "job_id": "019a1f85-126f-701c-b732-d9e071145302", "status": "queued", "model": "local/canvas",
                    "tokens_charged": 2, "user_balance": 98, "estimated_wait_seconds": 1,
                }
            ]
        }
    )  # fmt: skip
    job_id: UUID
    status: Literal["queued"]
    model: str
    tokens_charged: int
    user_balance: int
    estimated_wait_seconds: int


class PlannedRoute(BaseModel):
    provider: str
    provider_model: str
    priority: int
    rule: str = Field(description="Why it stands at this place.")


class DryRun(BaseModel):
    """200 of generate with `dry_run=1`: what it would cost, what would be left, and who would be asked in which order."""

    dry_run: Literal[True]
    model: str
    tokens_charged: int
    user_balance: int
    routes: list[PlannedRoute]
    estimated_wait_seconds: int
    deadline_seconds: int | None = Field(default=None, description="Where `Cancel-After` was sent.")


class Output(BaseModel):
    """An image carries `url` (signed, at least 24 h) and its size; a text carries `text`, an embedding `vector`."""

    index: int
    type: Literal["image", "text", "vector"]
    url: str | None = None
    media_type: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    text: str | None = None
    vector: list[float] | None = None
    facts: dict[str, Any] | None = Field(default=None, description="What the model measured, where it measures.")


class Progress(BaseModel):
    percent: int = Field(ge=0, le=100)
    stage: str


class JobError(BaseModel):
    code: str
    message: str


class JobBody(BaseModel):
    """A job. `tokens_charged` is the hold while it is open, the settled price afterwards (0 when not succeeded)."""

    job_id: UUID
    status: Status
    model: str
    user_id: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    progress: Progress
    outputs: list[Output] | None = None
    tokens_charged: int
    provider_used: str | None = None
    error: JobError | None = None
    cancel_requested: bool | None = None
    run_at: datetime | None = Field(default=None, description="Where the job was ordered for later: not before then.")
    deadline: datetime | None = Field(default=None, description="Where `Cancel-After` was sent: given up then.")
    erased: bool | None = Field(default=None, description="`true`: it delivered, and its outputs were erased since.")


class JobPage(BaseModel):
    jobs: list[JobBody]
    next_cursor: UUID | None


class Cancelled(BaseModel):
    job_id: UUID
    status: Literal["cancelled", "requested", "already_cancelled"]


class Expiring(BaseModel):
    """Whole credits that end at that moment unless they are spent before."""

    amount: int
    expires_at: datetime


class UserBody(BaseModel):
    """An end user. `token_balance`: whole credits that can be spent now; `tokens_owed` refuse new jobs until they are paid."""

    external_id: str
    token_balance: int
    tokens_held: int
    tokens_owed: int
    expiring: list[Expiring] = Field(description="Soonest first, at most 20; credits that never end are not in it.")
    total_jobs: int
    successful_jobs: int
    metadata: dict[str, Any]
    is_active: bool
    created_at: datetime


class Granted(BaseModel):
    external_id: str
    previous_balance: int
    amount_added: int
    new_balance: int
    transaction_id: UUID


class GrantedRow(BaseModel):
    """`index`: the row's place in `grants`; `new_balance`: right after this row."""

    index: int
    external_id: str
    amount_added: int
    new_balance: int
    transaction_id: UUID


class GrantedBatch(BaseModel):
    granted: int
    results: list[GrantedRow]


class Transaction(BaseModel):
    """One movement of a wallet. `change` and `balance_after` are exact credits, of what can be spent."""

    transaction_id: UUID
    type: Literal["grant", "bonus", "adjustment", "allowance", "hold", "post", "void", "refund", "expire", "clawback"]
    change: str
    balance_after: str
    description: str
    job_id: UUID | None
    created_at: datetime


class TransactionPage(BaseModel):
    transactions: list[Transaction]
    next_cursor: str | None


def transaction_body(line: Line) -> dict[str, Any]:
    return {
        "transaction_id": line.transfer_id,
        "type": line.kind,
        "change": money.exact(line.change_mc),
        "balance_after": money.exact(line.available_mc),
        "description": line.why,
        "job_id": line.job_id,
        "created_at": line.at,
    }


class Price(BaseModel):
    credits: str = Field(description="Exact decimal, at most three places.")
    unit: Literal["output", "job", "tokens", "second", "minute"] = Field(
        description="`tokens`: `credits` are for a call. `second`, `minute`: of a recording."
    )
    input: str | None = Field(default=None, description="By tokens: credits for a million tokens read.")
    cached: str | None = Field(default=None, description="For a million of them that came from a cache.")
    output: str | None = Field(default=None, description="For a million tokens written.")


class ModelBody(BaseModel):
    name: str
    display_name: str
    family: str
    description: str
    kind: str
    capabilities: dict[str, Any]
    price: Price
    expected_seconds: float
    input_schema: dict[str, Any]


class ModelList(BaseModel):
    models: list[ModelBody]


class LogEvent(BaseModel):
    """`seq`: its place in the log; `data` as the catalogue of events describes it for the type."""

    id: UUID
    seq: int
    type: str
    timestamp: datetime
    data: dict[str, Any]


class EventPage(BaseModel):
    events: list[LogEvent]
    next_after: int
    more: bool


class Problem(BaseModel):
    """Every error of this surface."""

    error: str
    code: str
    details: dict[str, list[str]] | None = None
    balance: int | None = None
    required: int | None = None
    owed: int | None = None
    retry_after: int | None = None
    limit: (
        Literal["user", "app", "organization", "open_jobs", "reads", "checks", "streams", "streams_per_app"] | None
    ) = None
    limit_size: int | None = None
    limit_bytes: int | None = Field(default=None, description="Of a body that is too large.")
    request_id: UUID


def dry_run_body(submission: Submission, foreseen: Foreseen) -> dict[str, Any]:
    """What a submit would do."""
    asked = {} if submission.cancel_after_s is None else {"deadline_seconds": submission.cancel_after_s}
    return asked | {
        "dry_run": True,
        "model": submission.model,
        "tokens_charged": money.whole(submission.hold_mc),
        "user_balance": money.whole(foreseen.available_mc),
        "routes": [
            {"provider": c.route.provider, "provider_model": c.route.provider_model, "priority": c.route.priority,
             "rule": c.told}
            for c in foreseen.candidates
        ],
        "estimated_wait_seconds": submission.wait_s,
    }  # fmt: skip


def job_body(job: Job, urls: MediaUrls) -> dict[str, Any]:
    """A job as its owner sees it, output URLs signed afresh."""
    body: dict[str, Any] = {
        "job_id": job.id,
        "status": job.state,
        "model": job.model,
        "user_id": job.external_id,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.finished_at,
        "progress": _progress(job),
        "tokens_charged": money.whole(job.charged_mc),
    }
    if job.run_at is not None:
        body["run_at"] = job.run_at
    if job.deadline is not None:
        body["deadline"] = job.deadline
    if job.is_erased:
        body |= {"erased": True, "provider_used": job.provider_used}
    elif job.state == "succeeded":
        body["outputs"] = [output_body(item, urls) for item in job.outputs or []]
        body["provider_used"] = job.provider_used
    elif job.state in {"failed", "cancelled"}:
        body["error"] = {"code": job.error_code, "message": job.error_message}
    elif job.cancel_requested_at is not None:
        body["cancel_requested"] = True
    return body


def _progress(job: Job) -> dict[str, Any]:
    if job.is_open:
        return {"percent": job.percent or 0, "stage": job.stage or job.state}
    return {"percent": 100 if job.state == "succeeded" else 0, "stage": job.state}


def output_body(item: dict[str, Any], urls: MediaUrls) -> dict[str, Any]:
    shown = {name: value for name, value in item.items() if name not in {"key", "sha256"} and value is not None}
    if "key" in item:
        shown["url"] = urls.sign(item["key"])
    return shown


def model_body(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "display_name": model.display_name,
        "family": model.family,
        "description": model.description,
        "kind": model.kind,
        "capabilities": model.capabilities,
        "price": _price(model),
        "expected_seconds": model.expected_s,
        "input_schema": model.input_schema,
    }


def _price(model: Model) -> dict[str, Any]:
    flat = {"credits": money.exact(model.price_mc), "unit": model.price_unit}
    if model.price_unit != "tokens":
        return flat
    by_tokens = {"input": model.input_price_mc, "cached": model.cached_price_mc, "output": model.output_price_mc}
    return flat | {name: money.exact(price_mc) for name, price_mc in by_tokens.items()}
