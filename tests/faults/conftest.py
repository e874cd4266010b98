"""A server of their own, since these tests kill it; and processes that are ended with the test."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import make_conninfo

from limner.db.embedded import EmbeddedPostgres
from limner.db.pools import Database
from limner.settings import Settings, load_root_key
from tests import acts, strict
from tests.conftest import Server, opened
from tests.faults.cluster import Cluster


@pytest.fixture(scope="session", name="server")
def server_to_kill() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="limner-faults-"))
    settings = Settings(home=home, lease_s=1.0, retry_backoff_s=0.1, _env_file=None)  # type: ignore[call-arg]
    embedded = EmbeddedPostgres(home)
    try:
        with embedded.running() as url:
            root = load_root_key(settings)
            strict.migrate(url, root)
            yield Server(home, settings, root, url, embedded)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest_asyncio.fixture(scope="session", name="db")
async def db_of_that_server(server: Server) -> AsyncIterator[Database]:
    async with opened(server, size=4) as database:
        yield database


@pytest.fixture(name="superuser")
def superuser_of_that_server(server: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(make_conninfo(server.embedded.superuser_conninfo(), dbname="limner"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def cluster(server: Server, superuser: psycopg.Connection) -> Iterator[Cluster]:
    """Nothing runs yet, and nothing that an earlier test left is in the queue."""
    acts.empty_queue(superuser)
    cluster = Cluster(server)
    yield cluster
    cluster.end()
    assert cluster.crashes() == []
