"""`limner.client` for programs without an event loop: the same calls, one after another.

with Limner("http://127.0.0.1:8000", api_key, user="user_42") as limner:
    job = limner.run("local/canvas", {"prompt": "A quiet harbour at sunset"})
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from limner import client
from limner.client import Accepted, AcceptedBatch, Batch, Event, Job, Piece, Progress, Upload

Item = TypeVar("Item")


class Limner:
    """client.Limner on an event loop of its own, in a thread. Raises what that raises."""

    def __init__(self, base_url: str, api_key: str, *, user: str | None = None) -> None:
        self._limner = client.Limner(base_url, api_key, user=user)
        self._stack = ExitStack()

    def __enter__(self) -> "Limner":
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal())
        self._stack.enter_context(self._portal.wrap_async_context_manager(self._limner))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def generate(
        self, model: str, input: Mapping[str, Any], *, priority: int | None = None, run_at: datetime | None = None,  # noqa: A002
        idempotency_key: str | None = None, webhook_url: str | None = None, cancel_after_s: int | None = None,
    ) -> Accepted:  # fmt: skip
        async def call() -> Accepted:
            return await self._limner.generate(
                model, input, priority=priority, run_at=run_at, idempotency_key=idempotency_key,
                webhook_url=webhook_url, cancel_after_s=cancel_after_s,
            )  # fmt: skip

        return self._portal.call(call)

    def batch(
        self, items: Sequence[Mapping[str, Any]], *, model: str | None = None, priority: int | None = None,
        run_at: datetime | None = None, idempotency_key: str | None = None, webhook_url: str | None = None,
        cancel_after_s: int | None = None,
    ) -> AcceptedBatch:  # fmt: skip
        async def call() -> AcceptedBatch:
            return await self._limner.batch(
                items, model=model, priority=priority, run_at=run_at, idempotency_key=idempotency_key,
                webhook_url=webhook_url, cancel_after_s=cancel_after_s,
            )  # fmt: skip

        return self._portal.call(call)

    def find_batch(self, batch_id: str) -> Batch:
        return self._portal.call(self._limner.find_batch, batch_id)

    def wait_batch(self, batch_id: str, *, on_progress: Callable[[Batch], None] | None = None) -> Batch:
        async def call() -> Batch:
            return await self._limner.wait_batch(batch_id, on_progress=on_progress)

        return self._portal.call(call)

    def batch_items(self, batch_id: str, *, status: str | None = None) -> Iterator[Job]:
        """The items in their order, each as a job; `body["index"]` is its place."""
        return self._each(self._limner.batch_items(batch_id, status=status))

    def cancel_batch(self, batch_id: str) -> str:
        return self._portal.call(self._limner.cancel_batch, batch_id)

    def job(self, job_id: str) -> Job:
        return self._portal.call(self._limner.job, job_id)

    def cancel(self, job_id: str) -> str:
        return self._portal.call(self._limner.cancel, job_id)

    def receipt(self, job_id: str) -> dict[str, Any]:
        return self._portal.call(self._limner.receipt, job_id)

    def models(self) -> list[dict[str, Any]]:
        return self._portal.call(self._limner.models)

    def events(self, after: int = 0) -> list[Event]:
        """The app's log behind that place, up to its present end."""

        async def call() -> list[Event]:
            return [event async for event in self._limner.events(after)]

        return self._portal.call(call)

    def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], *, max_tokens: int | None = None
    ) -> Iterator[Piece]:
        """The answer to a chat as it is written."""
        return self._each(self._limner.chat(model, messages, max_tokens=max_tokens))

    def follow(self, job_id: str, after: int = 0) -> Iterator[Event | Progress]:
        """A job's events and progress as they come, until it has ended."""
        return self._each(self._limner.follow(job_id, after))

    def _each(self, items: AsyncGenerator[Item, None]) -> Iterator[Item]:
        try:
            while True:
                try:
                    yield self._portal.call(items.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            self._portal.call(items.aclose)

    def wait(self, job_id: str, *, on_progress: Callable[[Progress], None] | None = None) -> Job:
        async def call() -> Job:
            return await self._limner.wait(job_id, on_progress=on_progress)

        return self._portal.call(call)

    def run(
        self, model: str, input: Mapping[str, Any], *, on_progress: Callable[[Progress], None] | None = None  # noqa: A002
    ) -> Job:  # fmt: skip
        async def call() -> Job:
            return await self._limner.run(model, input, on_progress=on_progress)

        return self._portal.call(call)

    def download(self, output: Mapping[str, Any]) -> bytes:
        async def call() -> bytes:
            return await self._limner.download(output)

        return self._portal.call(call)

    def webhook_secret(self) -> str:
        return self._portal.call(self._limner.webhook_secret)

    def upload(self, data: bytes, *, name: str = "") -> Upload:
        async def call() -> Upload:
            return await self._limner.upload(data, name=name)

        return self._portal.call(call)

    def delete_upload(self, upload_id: str) -> None:
        self._portal.call(self._limner.delete_upload, upload_id)
