"""What limner's API tells its clients, and how it refuses: the plain data of `limner.client`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLOSED = frozenset({"succeeded", "failed", "cancelled"})


class LimnerError(Exception):
    """The API refused: `code` is stable, `details` has messages by JSON pointer, `body` is the whole answer."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(f"{body.get('code')}: {body.get('error')}")
        self.status = status
        self.code = str(body.get("code"))
        self.message = str(body.get("error"))
        self.details: Mapping[str, list[str]] = body.get("details") or {}
        self.body = body


class Unreachable(Exception):
    """Nobody answered as limner's API does, for as long as it was tried."""


class WebhookForged(Exception):
    """Somebody else sent this, or somebody sent it again much later."""


class JobUnsuccessful(Exception):
    """A job that `run` waited for failed or was cancelled: `job` says why, and nothing was charged."""

    def __init__(self, job: "Job") -> None:
        super().__init__(f"job {job.id} {job.status}: {job.error_code}")
        self.job = job


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: percent 0 to 100, and a word for what it does."""

    percent: int
    stage: str


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job, as docs/reference/events.md lists them. `seq`: its place in the log; `job`: with the last one."""

    seq: int
    type: str
    timestamp: str
    data: Mapping[str, Any]
    job: "Job | None" = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the API tells it; `body` is the whole answer. `tokens_charged`: held while it is open, then what it cost."""

    id: str
    status: str
    model: str
    tokens_charged: int
    outputs: tuple[Mapping[str, Any], ...]
    error_code: str | None
    body: Mapping[str, Any] = field(repr=False)

    @property
    def is_closed(self) -> bool:
        return self.status in CLOSED

    @property
    def progress(self) -> Progress:
        return Progress(**self.body["progress"])


@dataclass(frozen=True, slots=True)
class Piece:
    """A bit of a chat's answer, and the job that it is charged to."""

    text: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that was taken: whole credits on hold, and left to spend."""

    job_id: str
    tokens_charged: int
    user_balance: int
    estimated_wait_seconds: int


@dataclass(frozen=True, slots=True)
class AcceptedBatch:
    """A batch that was taken: whole credits on hold for all its items, and left to spend."""

    batch_id: str
    total: int
    tokens_held: int
    user_balance: int


@dataclass(frozen=True, slots=True)
class Batch:
    """How far a batch is: `done` of `total` items have ended. `status`: running, cancelling, completed or cancelled."""

    id: str
    status: str
    total: int
    done: int
    succeeded: int
    failed: int
    cancelled: int
    tokens_held: int
    tokens_charged: int

    @property
    def is_closed(self) -> bool:
        return self.status in {"completed", "cancelled"}


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that is ready. `url` lives for a year; add `&w=640&f=webp` for a smaller copy. `body`: the whole answer."""

    id: str
    url: str
    width: int
    height: int
    body: Mapping[str, Any] = field(repr=False)

    @property
    def input(self) -> str:
        """What a job's `input.images` and `input.mask` take."""
        return f"upload:{self.id}"


def read_batch(body: Mapping[str, Any]) -> Batch:
    """From `GET /api/v1/batches/{id}`."""
    counts = {name: body["progress"][name] for name in ("succeeded", "failed", "cancelled")}
    facts = {name: body[name] for name in ("status", "total", "done", "tokens_held", "tokens_charged")}
    return Batch(id=body["batch_id"], **facts, **counts)


def read_job(body: Mapping[str, Any]) -> Job:
    """From `GET /api/v1/jobs/{id}`, or an item of a batch."""
    error = body.get("error") or {}
    return Job(
        body["job_id"], body["status"], body["model"], body["tokens_charged"], tuple(body.get("outputs") or ()),
        error.get("code"), body,
    )  # fmt: skip


def read_event(body: Mapping[str, Any]) -> Event:
    """From a stream or a page of the log."""
    job = body.get("job")
    return Event(body["seq"], body["type"], body["timestamp"], body["data"], None if job is None else read_job(job))
