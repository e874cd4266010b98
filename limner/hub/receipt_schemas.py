"""A receipt as the API shows it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from limner.hub.schemas import JobError, Status
from limner.hub.webhooks_schemas import ReceiptWebhook


class ReceiptCredits(BaseModel):
    """Exact decimals. `before` and `after` are the paying wallet's spendable credits around this job."""

    before: str | None
    held: str
    charged: str | None
    refunded: str
    after: str | None
    unit_price: str


class TokenPrices(BaseModel):
    """Of a job sold by tokens, when it was ordered: credits of a call, and of a million tokens each. Exact decimals."""

    call: str
    input: str
    cached: str
    output: str


class Attempt(BaseModel):
    """One try at one provider. `key`: with whose it was asked. `cost_micro_usd` where the organization may see costs, or paid itself."""

    run: int
    provider: str
    provider_model: str
    send: int
    rule: str
    key: Literal["own", "platform"]
    outcome: Literal["intent", "accepted", "done", "error", "unknown"]
    latency_ms: int | None
    started_at: datetime
    finished_at: datetime | None
    error: JobError | None = None
    cost_micro_usd: int | None = None


class Transfer(BaseModel):
    id: UUID
    kind: str
    credits: str
    balance_after: str
    reason: str | None
    at: datetime


class Usage(BaseModel):
    kind: str
    quantity: int
    unit: str
    credits: str
    cost_micro_usd: int | None = None


class TimePrice(BaseModel):
    """Of a model that is sold by time: what a second or a minute cost when the job was ordered."""

    credits: str
    unit: Literal["second", "minute"]


class Event(BaseModel):
    type: str
    at: datetime


class Receipt(BaseModel):
    """What happened to a job and what it cost. `rule` is why the provider that delivered was chosen, `tone` what the organization's
    settings put in front of the text. What the organization's own keys cost it, by the routes' figures, is `own_cost_micro_usd`."""

    job_id: UUID
    status: Status
    model: str
    user_id: str | None
    created_at: datetime
    completed_at: datetime | None
    provider_used: str | None
    rule: str | None
    runs: int
    credits: ReceiptCredits
    attempts: list[Attempt]
    transfers: list[Transfer]
    usage: list[Usage]
    events: list[Event]
    webhooks: list[ReceiptWebhook]
    request_id: str | None
    deadline: datetime | None = None
    token_prices: TokenPrices | None = None
    time_price: TimePrice | None = None
    provider_cost_micro_usd: int | None = None
    own_cost_micro_usd: int | None = None
    tone: str | None = None
