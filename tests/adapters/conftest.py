"""An installation of its own, with emulated providers behind it: one API and one worker for the folder."""

import base64
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack

import psycopg
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from limner.db.pools import Database
from tests.adapters import packages
from tests.adapters.counter import Counter
from tests.alone import db_that_sells, server_alone, superuser_alone
from tests.conftest import MakeTenant, Server
from tests.contracts.source import REPOSITORY
from tests.emulators import anthropic_server, gemini_server, wordsmith
from tests.emulators.far_server import FarServer
from tests.emulators.wordsmith import Wordsmith
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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def smith() -> AsyncIterator[Wordsmith]:
    """The service of the guide."""
    async with wordsmith.running() as smith:
        yield smith


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a Python in which the guide's adapter is installed."""
    folder = tmp_path_factory.mktemp("packages")
    packages.install(folder)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
    return {**clean, "PYTHONPATH": f"{folder}:{REPOSITORY}"}


@pytest.fixture(scope="session")
def house(
    server: Server, db: Database, fars: dict[str, FarServer], smith: Wordsmith, packaged: Mapping[str, str]
) -> Iterator[Api]:
    keys = {far.origin: far.key for far in fars.values()} | {smith.origin: wordsmith.KEY}
    reaching = {
        "LIMNER_DATABASE_URL": server.url,
        "LIMNER_EGRESS_PLAIN_ORIGINS": ",".join(keys),
        "LIMNER_PROVIDER_KEYS": json.dumps(keys),
        "PYTHONPATH": packaged["PYTHONPATH"],
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
