"""A database that no worker process of the test run touches, on the run's own server: for tests that claim jobs themselves.

A folder's conftest imports these fixtures; they take the places of tests/conftest.py's.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import make_conninfo

from limner.db.pools import Database
from tests import strict
from tests.conftest import Server, opened
from tests.running import Api


def superuser_conninfo(server: Server) -> str:
    """The superuser's address of this server's database."""
    dbname = psycopg.conninfo.conninfo_to_dict(server.url)["dbname"]
    return make_conninfo(server.embedded.superuser_conninfo(), dbname=dbname)


@pytest.fixture(scope="session", name="server")
def server_alone(server: Server) -> Server:
    name = f"alone_{uuid4().hex[:8]}"
    with psycopg.connect(server.embedded.superuser_conninfo(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} OWNER limner_migrate")
    url = make_conninfo(server.url, dbname=name)
    strict.migrate(url, server.root)
    return replace(server, url=url)


@pytest_asyncio.fixture(scope="module", name="db")
async def db_alone(server: Server) -> AsyncIterator[Database]:
    async with opened(server, sells=False) as database:
        yield database


@pytest_asyncio.fixture(scope="session", name="db")
async def db_that_sells(server: Server) -> AsyncIterator[Database]:
    """For the whole folder, with the catalog's models."""
    async with opened(server) as database:
        yield database


@pytest.fixture(scope="session", name="api")
def api_alone(server: Server, db: Database) -> Iterator[Api]:
    process = Api(server.home, LIMNER_DATABASE_URL=server.url)
    yield process
    process.stop()


@pytest.fixture(name="superuser")
def superuser_alone(server: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(superuser_conninfo(server), autocommit=True) as conn:
        yield conn
