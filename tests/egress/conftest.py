"""A provider on a real socket, and door 1 with a key for it."""

from collections.abc import AsyncIterator

import pytest_asyncio

from limner.egress.fixed import FixedDoor
from tests.egress.keys import KEY
from tests.emulators import rogue
from tests.emulators.rogue import Rogue, plain


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Rogue]:
    async with rogue.running(plain(200, b'{"ok": true}', "X-Request-Id: r1")) as server:
        yield server


@pytest_asyncio.fixture
async def door(provider: Rogue) -> AsyncIterator[FixedDoor]:
    made = FixedDoor([], [provider.origin], {provider.origin: KEY})
    yield made
    await made.aclose()
