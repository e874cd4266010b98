"""What every provider adapter speaks: one call in, one result or one classified error out.

An adapter is one small file. It declares its `call_class` (what limner may do when the outcome of a call is
unknown, docs/reference/providers.md) and turns a parsed request into provider work. It never sees a database
connection, a tenant or a price.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable
from uuid import UUID

from limner.egress.own_keys import SealedKey


class CallClass(StrEnum):
    """What may be done when a call's outcome is unknown (the worker died with the socket open)."""

    A = "A"  # the provider honours our idempotency key (or the work is pure): resend with the same key
    B = "B"  # an asynchronous task that can be looked up by a name that is ours; no adapter has such a look-up: treated like C
    C = "C"  # neither: resend at most once, then fail


ErrorKind = Literal["retryable", "rate", "auth", "content", "bad_request", "fatal"]

Progress = Callable[[int, str], Awaitable[None]]
"""`await progress(percent 0-100, stage)`: cheap, may be called often; the caller throttles."""
Leave = Awaitable[None] | None
"""What is waited for before anything is sent; None: nothing."""
Accepted = Callable[[str], Awaitable[None]]
"""`await accepted(task_id)`: the provider took the work on as a task of this name. Committed when it returns."""


async def _unrecorded(_: str) -> None:
    """Nobody takes the task up again."""


@dataclass(frozen=True, slots=True)
class Blob:
    """An input image: the bytes as the client sent them, already sniffed and decoded once (media.images).

    Or a recording, of no width and height: sniffed, walked through and measured (media.audio); 0 ms where its length stands in the input.
    """

    media_type: str
    data: bytes
    width: int
    height: int
    duration_ms: int = 0


class Hook(Protocol):
    """How a provider may say that there is news of a call's task. A hint: the task is asked after all the same."""

    def url(self, adapter: str) -> str | None:
        """An https address for this call alone; None where nobody outside reaches this installation."""

    async def pause(self, seconds: float) -> None:
        """As long as that, or until the provider says that there is news."""


class NoHook:
    """Nobody outside says anything."""

    def url(self, _: str) -> str | None:
        return None

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class ProviderCall:
    """One try at one provider. `input` is the request as parsed and priced: nothing else may be executed.

    `base_url` is the provider's address as the catalog has it; `config` its configuration, then the route's. `own_key`: whose key it
    is for; an adapter hands it to the door, as it is. `task_id`: a task that the provider took on for an earlier run of this very
    call: it is asked after, and nothing is sent.
    """

    job_id: UUID
    kind: str
    provider_model: str
    input: Mapping[str, Any]
    images: tuple[Blob, ...]
    mask: Blob | None
    config: Mapping[str, Any]
    idempotency_key: str
    timeout_s: float
    progress: Progress
    base_url: str | None = None
    own_key: SealedKey | None = None
    audio: Blob | None = None
    task_id: str | None = None
    accepted: Accepted = _unrecorded
    hook: Hook = field(default_factory=NoHook)

    @property
    def audio_ms(self) -> int:
        """How long the recording lasts by its own container, rounded up; 0 without one."""
        described = self.input.get("audio")
        stated = described.get("duration_ms") if isinstance(described, Mapping) else None
        return int(stated or (self.audio.duration_ms if self.audio is not None else 0))


@dataclass(frozen=True, slots=True)
class Output:
    """One result. An image carries `data` (any allowed format: it is re-encoded before storing), text `text`.

    A vector carries `vector`: an embedding, finite numbers in the provider's own order.
    """

    index: int
    type: Literal["image", "text", "vector"]
    data: bytes | None = None
    text: str | None = None
    vector: Sequence[float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the provider says it consumed beside the outputs: `kind` such as "input_tokens", `quantity` a count of `unit`.

    An adapter hands on what was stated, None where nothing was: whether it can be true is judged by hub.stated.
    """

    kind: str
    quantity: int
    unit: str


@dataclass(frozen=True, slots=True)
class ProviderResult:
    outputs: tuple[Output, ...]
    usage: tuple[Usage, ...] = ()
    cost_micro_usd: int | None = None
    task_id: str | None = None


class ConfigInvalid(ValueError):
    """A provider's address or configuration cannot work; the message names the field and holds none of its value."""


class ProviderError(Exception):
    """A call that failed for a known reason.

    `kind` decides what follows: retryable, rate, auth and fatal move on to the next provider; content and
    bad_request end the job, since another provider would be asked the same wrong thing. `outcome_unknown` True
    when the request may have been served (and billed) all the same, such as a connection lost after it was sent:
    the call class then decides whether it is sent again. A task that was accepted is asked after by the next run then.
    `usage`, `cost_micro_usd`: what the provider stated and bills although it did not deliver, as in a ProviderResult.
    """

    def __init__(
        self, code: str, message: str, kind: ErrorKind, retry_after_s: float | None = None, *,
        outcome_unknown: bool = False, usage: tuple[Usage, ...] = (), cost_micro_usd: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind: ErrorKind = kind
        self.retry_after_s = retry_after_s
        self.outcome_unknown = outcome_unknown
        self.usage = usage
        self.cost_micro_usd = cost_micro_usd


class Adapter(Protocol):
    """One kind of provider. `run` raises ProviderError and nothing else on purpose; it honours cancellation."""

    name: str
    call_class: CallClass

    async def run(self, call: ProviderCall) -> ProviderResult: ...


@runtime_checkable
class TaskAdapter(Adapter, Protocol):
    """One whose provider works on tasks that can be asked after by name.

    `run` awaits `call.accepted` as soon as it has the name, before it asks after the task for the first time; where the call
    comes with a `task_id` it asks after that one. A task that is not there any more is a ProviderError.
    """

    async def call_off(self, call: ProviderCall) -> None:
        """Nobody wants the task of `call.task_id` any more. Raises ProviderError; within CALL_OFF_S."""
