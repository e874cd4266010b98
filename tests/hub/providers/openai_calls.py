"""Calls of the OpenAI-compatible adapter, as a run makes them, to an emulated server over a real socket."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from limner.egress.fixed import FixedDoor
from limner.hub.providers.base import Blob, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.openai_compatible.adapter import OpenAICompatibleAdapter
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer
from tests.hub.doubles import png

KEY = "sk-test-4f9d0b7c2a"
JOB = UUID("019a1f85-126f-701c-b732-d9e071145302")


class Desk:
    """A server, and an adapter that knows its address and has its key."""

    def __init__(self, server: OpenAIServer, door: FixedDoor) -> None:
        self.server = server
        self.adapter = OpenAICompatibleAdapter(door)

    async def ask(self, kind: str = "text.generate", **facts: Any) -> ProviderResult:
        return await self.adapter.run(self.call(kind, **facts))

    def call(self, kind: str = "text.generate", **facts: Any) -> ProviderCall:
        """`base_url`, `config`, `images`, `mask`, `model` and `timeout_s` are the call's; everything else is the input's."""

        async def progress(percent: int, stage: str) -> None:
            pass

        return ProviderCall(
            job_id=JOB, kind=kind, provider_model=facts.pop("model", "painter" if kind.startswith("image.") else "tiny"),
            base_url=facts.pop("base_url", self.server.url), config=facts.pop("config", {}),
            timeout_s=facts.pop("timeout_s", 10.0), images=tuple(facts.pop("images", ())), mask=facts.pop("mask", None),
            input=facts.pop("input", facts), idempotency_key=f"{JOB}:main:far", progress=progress,
        )  # fmt: skip

    async def refused(self, kind: str = "text.generate", **facts: Any) -> ProviderError:
        """The error of a call that must fail."""
        with pytest.raises(ProviderError) as caught:
            await self.ask(kind, **facts)
        return caught.value


@pytest_asyncio.fixture(name="desk")
async def open_desk() -> AsyncIterator[Desk]:
    async with openai_server.running(KEY) as server:
        door = FixedDoor((), (server.origin,), {server.origin: KEY})
        yield Desk(server, door)
        await door.aclose()


def picture(grey: int = 90) -> Blob:
    """A small PNG, as it comes to an adapter."""
    return Blob("image/png", png(8, grey=grey), 8, 8)
