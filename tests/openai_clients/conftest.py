"""An installation of its own for these tests, with an emulated provider behind it."""

import io
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import pytest_asyncio
from PIL import Image

from limner.db.pools import Database
from tests.alone import db_that_sells, server_alone, superuser_alone
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer
from tests.openai_clients.shop import Books, stock
from tests.running import Api, start_worker

__all__ = ["db_that_sells", "server_alone", "superuser_alone"]

KEY = "sk-behind-4f2c71"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY, "judge", "whisper-1") as server:
        yield server


@pytest.fixture(scope="session")
def house(server: Server, db: Database, far: OpenAIServer) -> Iterator[Api]:
    reaching = {"LIMNER_DATABASE_URL": server.url, **far.environment}
    api, worker = Api(server.home, **reaching), start_worker(server.home, **reaching)
    yield api
    api.stop()
    worker.stop()


@pytest_asyncio.fixture
async def shop(db: Database, make_tenant: MakeTenant, far: OpenAIServer) -> AsyncIterator[Tenant]:
    """An organization that sells what the emulated server has; its user has 100 credits."""
    tenant = await make_tenant(credits=100)
    await stock(db, tenant, far.url)
    yield tenant
    far.calm_down()
    far.tokens = 20


@pytest.fixture
def books(superuser: psycopg.Connection, shop: Tenant) -> Books:
    return Books(superuser, shop)


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A red surface with a white spot in the middle, as PNG."""
    image = Image.new("RGB", (32, 24), (200, 30, 30))
    image.paste((255, 255, 255), (13, 9, 19, 15))
    return _png(image)


@pytest.fixture(scope="session")
def hole() -> bytes:
    """A mask for it: transparent around the spot."""
    image = Image.new("RGBA", (32, 24), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (11, 7, 21, 17))
    return _png(image)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
