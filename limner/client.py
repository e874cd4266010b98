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
from datetime import datetime
from types import TracebackType
from typing import Any
from urllib.parse import quote

from limner.answers import (
    CLOSED,
    Accepted,
    AcceptedBatch,
    Batch,
    Event,
    Job,
    JobUnsuccessful,
    LimnerError,
    Piece,
    Progress,
    Unreachable,
    Upload,
    WebhookForged,
    read_batch,
    read_event,
    read_job,
)
from limner.egress.loopback import ApiRefused, ApiUnreachable, LoopbackClient
from limner.kit import ids, signing

__all__ = [
    "CLOSED",
    "Accepted",
    "AcceptedBatch",
    "Batch",
    "Event",
    "Job",
    "JobUnsuccessful",
    "Limner",
    "LimnerError",
    "Piece",
    "Progress",
    "Unreachable",
    "Upload",
    "WebhookForged",
    "verify_webhook",
]

TRIES = 6
PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
BATCH_PAUSE_S = 1.0
STREAM_PAUSE_S = 1.0
"""Before a stream that broke is taken up again."""


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
        idempotency_key: str | None = None, webhook_url: str | None = None, cancel_after_s: int | None = None,
    ) -> Accepted:  # fmt: skip
        """Submit a job. `run_at` needs an offset; `webhook_url`: where to be told of its end; `cancel_after_s`: its deadline."""
        body = {"model": model, "input": dict(input)} | _optional(priority, run_at, webhook_url)
        answer = await self._call("POST", "/api/v1/generate", body, _once(idempotency_key, cancel_after_s))
        return Accepted(**{name: answer[name] for name in Accepted.__dataclass_fields__})

    async def batch(
        self, items: Sequence[Mapping[str, Any]], *, model: str | None = None, priority: int | None = None,
        run_at: datetime | None = None, idempotency_key: str | None = None, webhook_url: str | None = None,
        cancel_after_s: int | None = None,
    ) -> AcceptedBatch:  # fmt: skip
        """Submit up to 1,000 jobs, all or none: `{"input": …, "model": …}` each; `model` is of those that name none."""
        body: dict[str, Any] = {"items": [dict(item) for item in items]} | _optional(priority, run_at, webhook_url)
        if model is not None:
            body["model"] = model
        answer = await self._call("POST", "/api/v1/batches", body, _once(idempotency_key, cancel_after_s))
        return AcceptedBatch(**{name: answer[name] for name in AcceptedBatch.__dataclass_fields__})

    async def find_batch(self, batch_id: str) -> Batch:
        return read_batch(await self._call("GET", f"/api/v1/batches/{quote(batch_id, safe='')}"))

    async def wait_batch(self, batch_id: str, *, on_progress: Callable[[Batch], None] | None = None) -> Batch:
        """The batch once its last item has ended; looked at every second. Bound it with asyncio.timeout."""
        while True:
            batch = await self.find_batch(batch_id)
            if on_progress is not None:
                on_progress(batch)
            if batch.is_closed:
                return batch
            await asyncio.sleep(BATCH_PAUSE_S)

    async def batch_items(self, batch_id: str, *, status: str | None = None) -> AsyncGenerator[Job, None]:
        """The items in their order, each as a job; `body["index"]` is its place. `status`: only those."""
        path = f"/api/v1/batches/{quote(batch_id, safe='')}/items?limit=100" + (f"&status={status}" if status else "")
        cursor: str | None = ""
        while cursor is not None:
            page = await self._call("GET", f"{path}&cursor={cursor}")
            for item in page["items"]:
                yield read_job(item)
            cursor = page["next_cursor"]

    async def cancel_batch(self, batch_id: str) -> str:
        """`cancelled`, `requested` (workers have some items) or `already_cancelled`."""
        return str((await self._call("POST", f"/api/v1/batches/{quote(batch_id, safe='')}/cancel"))["status"])

    async def job(self, job_id: str) -> Job:
        return read_job(await self._call("GET", f"/api/v1/jobs/{quote(job_id, safe='')}"))

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
                yield read_event(one)
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
                    yield Progress(body["percent"], body["stage"]) if name == "progress" else read_event(body)
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


def _optional(priority: int | None, run_at: datetime | None, webhook_url: str | None) -> dict[str, Any]:
    given = {"priority": priority, "run_at": run_at and run_at.isoformat(), "webhook_url": webhook_url}
    return {name: value for name, value in given.items() if value is not None}


def _once(idempotency_key: str | None, cancel_after_s: int | None) -> dict[str, str]:
    deadline = {} if cancel_after_s is None else {"Cancel-After": str(cancel_after_s)}
    return {"Idempotency-Key": idempotency_key or str(ids.new()), **deadline}
