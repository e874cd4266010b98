"""Calls of adapters whose providers work on tasks, as a run makes them, to emulated servers over real sockets."""

from typing import Any
from uuid import UUID

import pytest

from limner.egress.destinations import Destinations
from limner.egress.fixed import FixedDoor
from limner.egress.untrusted import UntrustedDoor
from limner.hub.providers.base import Blob, ProviderCall, ProviderError, ProviderResult, TaskAdapter
from limner.hub.providers.fetching import Results
from tests.emulators.tasks import TaskServer
from tests.hub.doubles import png

KEY = "r8-test-4f9d0b7c2a"
JOB = UUID("019a1f85-126f-701c-b732-d9e071145302")
QUICK = {"poll_s": 0.05}


class Desk:
    """A server, an adapter that knows its address and has its key, and what the adapter told of its calls."""

    def __init__(self, server: TaskServer, adapter: TaskAdapter, model: str) -> None:
        self.server = server
        self.adapter = adapter
        self.model = model
        self.accepted: list[str] = []
        self.progress: list[tuple[int, str]] = []

    def forget(self) -> None:
        """As it was when it began."""
        self.server.forget()
        self.server.key = KEY
        self.accepted.clear()
        self.progress.clear()

    async def ask(self, kind: str = "image.generate", **facts: Any) -> ProviderResult:
        return await self.adapter.run(self.call(kind, **facts))

    def call(self, kind: str = "image.generate", **facts: Any) -> ProviderCall:
        """`config`, `images`, `mask`, `model`, `task_id` and `timeout_s` are the call's; everything else is the input's."""

        async def progress(percent: int, stage: str) -> None:
            self.progress.append((percent, stage))

        async def accepted(task_id: str) -> None:
            assert self.server.requests["poll"] == 0, "asked after before it was written down"
            self.accepted.append(task_id)

        images = tuple(facts.pop("images", ()))
        return ProviderCall(
            job_id=JOB, kind=kind, provider_model=facts.pop("model", self.model), base_url=self.server.url,
            config=QUICK | facts.pop("config", {}), timeout_s=facts.pop("timeout_s", 10.0), images=images,
            mask=facts.pop("mask", None), task_id=facts.pop("task_id", None),
            input=facts.pop("input", {"prompt": "a hare"} | ({"images": [{}] * len(images)} if images else {}) | facts),
            idempotency_key=f"{JOB}:main:far", progress=progress, accepted=accepted,
        )  # fmt: skip

    async def refused(self, kind: str = "image.generate", **facts: Any) -> ProviderError:
        """The error of a call that must fail; it repeats nothing that the server said."""
        with pytest.raises(ProviderError) as caught:
            await self.ask(kind, **facts)
        assert KEY not in caught.value.message
        assert self.server.origin not in caught.value.message
        return caught.value


def doors(server: TaskServer) -> tuple[FixedDoor, Results]:
    """To the server with its key, and to what it made."""
    fixed = FixedDoor((), (server.origin,), {server.origin: KEY})
    return fixed, Results(UntrustedDoor(Destinations((server.origin,), ())))


def picture(grey: int = 90) -> Blob:
    """A small PNG, as it comes to an adapter."""
    return Blob("image/png", png(8, grey=grey), 8, 8)


def verdict(error: ProviderError) -> tuple[str, str, bool]:
    return error.code, error.kind, error.outcome_unknown
