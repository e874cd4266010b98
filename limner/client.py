"""A client for limner's API, for programs that use it: generate, wait with progress, follow events, verify webhooks.

    async with Limner("http://127.0.0.1:8000", api_key, user="user_42") as limner:
        job = await limner.run("local/canvas", {"prompt": "A quiet harbour at sunset"})
        picture = await limner.download(job.outputs[0])

Whatever is sent twice because an answer was lost is done once: a job goes with an idempotency key of its own. `limner.blocking`
has the same for programs without an event loop.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any
from urllib.parse import quote

from limner.egress.loopback import ApiRefused, ApiUnreachable, LoopbackClient
from limner.kit import ids, signing

TRIES = 6
PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
CLOSED = frozenset({"succeeded", "failed", "cancelled"})
STREAM_PAUSE_S = 1.0
"""Before a stream that broke is taken up again."""


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


class Limner:
    """One app, speaking for one end user where `user` is given. Every call raises LimnerError and Unreachable."""

    def __init__(self, base_url: str, api_key: str, *, user: str | None = None) -> None:
        headers = {"X-API-Key": api_key} | ({} if user is None else {"X-User-ID": user})
        self._api = LoopbackClient(base_url.rstrip("/"), headers)
        self._bearer = {"Authorization": f"Bearer {api_key}"}

    async def __aenter__(self) -> "Limner":
        await self._api.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.__aexit__(kind, error, trace)

    async def generate(
        self, model: str, input: Mapping[str, Any], *, priority: int | None = None, run_at: datetime | None = None,  # noqa: A002
        idempotency_key: str | None = None, webhook_url: str | None = None,
    ) -> Accepted:  # fmt: skip
        """Submit a job. `run_at` needs an offset; `webhook_url`: where to be told of its end."""
        body: dict[str, Any] = {"model": model, "input": dict(input)}
        if priority is not None:
            body["priority"] = priority
        if run_at is not None:
            body["run_at"] = run_at.isoformat()
        if webhook_url is not None:
            body["webhook_url"] = webhook_url
        answer = await self._call(
            "POST", "/api/v1/generate", body, {"Idempotency-Key": idempotency_key or str(ids.new())}
        )
        return Accepted(**{name: answer[name] for name in Accepted.__dataclass_fields__})

    async def job(self, job_id: str) -> Job:
        return _job(await self._call("GET", f"/api/v1/jobs/{quote(job_id, safe='')}"))

    async def cancel(self, job_id: str) -> str:
        """`cancelled`, `requested` (a worker has it) or `already_cancelled`."""
        answer = await self._call("POST", f"/api/v1/jobs/{quote(job_id, safe='')}/cancel")
        return str(answer["status"])

    async def receipt(self, job_id: str) -> dict[str, Any]:
        """Everything that happened to a job and what it cost."""
        return dict(await self._call("GET", f"/api/v1/jobs/{quote(job_id, safe='')}/receipt"))

    async def models(self) -> list[dict[str, Any]]:
        """What may be used, with prices and input schemas."""
        return list((await self._call("GET", "/api/v1/models"))["models"])

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """The app's log behind that place, up to its present end. Of a client without `user`."""
        more = True
        while more:
            page = await self._call("GET", f"/api/v1/events?after={after}&limit=100")
            for one in page["events"]:
                yield _event(one)
            after, more = page["next_after"], page["more"]

    async def follow(self, job_id: str, after: int = 0) -> AsyncGenerator[Event | Progress, None]:
        """A job's events and progress as they come, until it has ended; a stream that breaks is taken up again."""
        failures = 0
        while True:
            try:
                async for news in self._read(job_id, after):
                    failures = 0
                    yield news
                    if isinstance(news, Event):
                        after = news.seq
                        if news.job is not None:
                            return
                if (await self.job(job_id)).is_closed and after:
                    return
            except ApiRefused as refused:
                if refused.status != 503:
                    raise LimnerError(refused.status, refused.body) from None
                failures += 1
            except ApiUnreachable as error:
                failures += 1
                if failures >= TRIES:
                    raise Unreachable(str(error)) from None
            await asyncio.sleep(STREAM_PAUSE_S)

    async def wait(self, job_id: str, *, on_progress: Callable[[Progress], None] | None = None) -> Job:
        """The job once it is closed, however it ended. Bound it with asyncio.timeout."""
        async for news in self.follow(job_id):
            if isinstance(news, Event) and news.job is not None:
                return news.job
            if isinstance(news, Progress) and on_progress is not None:
                on_progress(news)
        return await self.job(job_id)

    async def run(
        self, model: str, input: Mapping[str, Any], *, on_progress: Callable[[Progress], None] | None = None  # noqa: A002
    ) -> Job:  # fmt: skip
        """Submit a job and wait for it. Raises JobUnsuccessful besides."""
        job = await self.wait((await self.generate(model, input)).job_id, on_progress=on_progress)
        if job.status != "succeeded":
            raise JobUnsuccessful(job)
        return job

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], *, max_tokens: int | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The answer to a chat as it is written, by `/v1/chat/completions`; OpenAI's own clients do the same, and more.

        Never sent twice: whoever stops listening pays by the model's rule.
        """
        asked: dict[str, Any] = {"model": model, "messages": list(messages), "stream": True}
        if max_tokens is not None:
            asked["max_tokens"] = max_tokens
        try:
            async with self._api.stream("/v1/chat/completions", self._bearer, asked) as stream:
                job_id = stream.headers.get("x-limner-job", "")
                async for line in stream.lines:
                    if not line.startswith("data: {"):
                        continue
                    said = json.loads(line[6:])
                    if "error" in said:
                        raise LimnerError(stream.status, _told(said))
                    for choice in said["choices"]:
                        if text := choice["delta"].get("content"):
                            yield Piece(text, job_id)
        except ApiRefused as refused:
            raise LimnerError(refused.status, _told(refused.body)) from None
        except ApiUnreachable as error:
            raise Unreachable(str(error)) from None

    async def download(self, output: Mapping[str, Any]) -> bytes:
        """The bytes of a picture that a job delivered, over this client's own origin."""
        try:
            return await self._api.download(str(output["url"]))
        except ApiUnreachable as error:
            raise Unreachable(str(error)) from None

    async def webhook_secret(self) -> str:
        """`whsec_…`: what signs deliveries to a job's `webhook_url`, and to the app's own. Needs webhooks:manage."""
        own = (await self._call("GET", "/api/v1/webhooks"))["webhooks"][0]
        return str((await self._call("GET", f"/api/v1/webhooks/{own['id']}/secret"))["secret"])

    async def upload(self, data: bytes, *, name: str = "") -> Upload:
        """A picture, reserved, sent and made ready: jobs take it by its `input`. Raises LimnerError for one that is refused."""
        wanted = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "kind": "image", "name": name}
        created = await self._call("POST", "/api/v1/uploads", wanted, {"Idempotency-Key": str(ids.new())})
        to = created["upload"]
        try:
            await self._api.put(to["url"], data, to["headers"])
        except ApiRefused as refused:
            raise LimnerError(refused.status, refused.body) from None
        except ApiUnreachable:
            pass  # perhaps the answer alone was lost: the next call tells
        while True:
            ready = await self._call("POST", f"/api/v1/uploads/{created['id']}/complete")
            if ready["status"] == "ready":
                return Upload(ready["id"], ready["url"], ready["width"], ready["height"], ready)
            await asyncio.sleep(1)

    async def delete_upload(self, upload_id: str) -> None:
        await self._call("DELETE", f"/api/v1/uploads/{quote(upload_id, safe='')}")

    async def _read(self, job_id: str, after: int) -> AsyncGenerator[Event | Progress, None]:
        """One stream, by the rules of WHATWG HTML 9.2.6."""
        headers = {"Last-Event-ID": str(after)} if after else {}
        async with self._api.stream(f"/api/v1/jobs/{quote(job_id, safe='')}/events", headers) as stream:
            name, data = "", ""
            async for line in stream.lines:
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    data = line[6:]
                elif not line and data:
                    body = json.loads(data)
                    yield Progress(body["percent"], body["stage"]) if name == "progress" else _event(body)
                    name, data = "", ""

    async def _call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Tried again while the API is away or busy: what is sent twice is done once."""
        for attempt in range(TRIES):
            pause_s = min(PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            try:
                return dict(await self._api.call(method, path, body, headers=headers))
            except ApiRefused as refused:
                if refused.status != 503 or attempt == TRIES - 1:
                    raise LimnerError(refused.status, refused.body) from None
                pause_s = max(pause_s, min(float(refused.headers.get("retry-after", 0)), LONGEST_PAUSE_S))
            except ApiUnreachable as error:
                if attempt == TRIES - 1:
                    raise Unreachable(str(error)) from None
            await asyncio.sleep(pause_s)
        raise AssertionError


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """What a delivery tells, once it is clear that limner signed these very bytes, not more than five minutes ago.

    `secret` as limner shows it; `headers` by any case of their names; `body` as it arrived. Raises WebhookForged. Source:
    the Standard Webhooks specification 1.0.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    if not signing.verify([signing.read_secret(secret)], sent, body, time.time()):
        raise WebhookForged("the signature is not limner's, or is too old")
    told = json.loads(body)
    assert isinstance(told, dict)
    return told


def _told(body: Mapping[str, Any]) -> dict[str, Any]:
    """An error in OpenAI's shape, as limner's own surface says it."""
    error = body.get("error")
    return {**body, "error": error.get("message"), "code": error.get("code")} if isinstance(error, dict) else dict(body)


def _job(body: Mapping[str, Any]) -> Job:
    error = body.get("error") or {}
    return Job(
        body["job_id"], body["status"], body["model"], body["tokens_charged"], tuple(body.get("outputs") or ()),
        error.get("code"), body,
    )  # fmt: skip


def _event(body: Mapping[str, Any]) -> Event:
    job = body.get("job")
    return Event(body["seq"], body["type"], body["timestamp"], body["data"], None if job is None else _job(job))
