"""An installation of its own, with emulated providers behind it: one API and one worker for the folder."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import psycopg
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from limner.db.pools import Database
from tests.adapters.counter import Counter
from tests.alone import db_that_sells, server_alone, superuser_alone
from tests.conftest import MakeTenant, Server
from tests.emulators import anthropic_server, gemini_server
from tests.emulators.far_server import FarServer
from tests.hub.doubles import png
from tests.openai_clients.shop import Books
from tests.running import Api, start_worker

__all__ = ["db_that_sells", "server_alone", "superuser_alone"]

EMULATORS = {"anthropic": anthropic_server, "gemini": gemini_server}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fars() -> AsyncIterator[dict[str, FarServer]]:
    """An emulated provider for each adapter."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(emulator.running(f"sk-{name}-4f2c71"))
            for name, emulator in EMULATORS.items()
        }


@pytest.fixture(scope="session")
def house(server: Server, db: Database, fars: dict[str, FarServer]) -> Iterator[Api]:
    reaching = {
        "LIMNER_DATABASE_URL": server.url,
        "LIMNER_EGRESS_PLAIN_ORIGINS": ",".join(far.origin for far in fars.values()),
        "LIMNER_PROVIDER_KEYS": json.dumps({far.origin: far.key for far in fars.values()}),
    }
    api, worker = Api(server.home, **reaching), start_worker(server.home, **reaching)
    yield api
    api.stop()
    worker.stop()


@pytest.fixture(params=list(EMULATORS))
def adapter(request: pytest.FixtureRequest) -> str:
    """Each of the adapters in turn."""
    name: str = request.param
    return name


@pytest.fixture
def far(fars: dict[str, FarServer], adapter: str) -> Iterator[FarServer]:
    server = fars[adapter]
    server.asked.clear()
    yield server
    server.calm_down()


@pytest_asyncio.fixture
async def counter(house: Api, db: Database, make_tenant: MakeTenant, adapter: str, far: FarServer) -> Counter:
    """An organization that sells what the emulated provider has; its user has 100 credits."""
    counter = Counter(house, db, await make_tenant(credits=100))
    await counter.sell(adapter, far)
    return counter


@pytest_asyncio.fixture
async def client(counter: Counter) -> AsyncIterator[AsyncOpenAI]:
    async with counter.client() as client:
        yield client


@pytest.fixture
def books(superuser: psycopg.Connection, counter: Counter) -> Books:
    return Books(superuser, counter.tenant)


@pytest.fixture(scope="session")
def photo() -> str:
    """A small picture as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png(8)).decode()}"
