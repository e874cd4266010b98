"""A database that no worker of the test run touches, an API over it, and a sender for the test's own tenant."""

from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import pytest_asyncio

from limner.cli import demo_tenant
from limner.db.pools import Address, Database
from tests.alone import server_alone, superuser_alone
from tests.conftest import ROLES, Server, Tenant
from tests.media.sending import Sender
from tests.running import Api, Client

__all__ = ["server_alone", "superuser_alone"]


@pytest_asyncio.fixture(scope="session")
async def db(server: Server) -> AsyncIterator[Database]:
    database = Database(Address(server.url), server.root, ROLES, size=12)
    await database.open()
    await demo_tenant.install_catalog(database)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def api(server: Server, db: Database) -> Iterator[Api]:
    process = Api(server.home, LIMNER_DATABASE_URL=server.url)
    yield process
    process.stop()


@pytest.fixture
def sender(client: Client, server: Server, tenant: Tenant, superuser: psycopg.Connection) -> Sender:
    return Sender(client, server, tenant, superuser)
