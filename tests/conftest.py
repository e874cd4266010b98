"""One real embedded PostgreSQL for the whole run, and a fresh organization for each test that asks for one."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.cli import demo_tenant
from limner.db.embedded import EmbeddedPostgres
from limner.db.pools import Address, Database
from limner.kit import ids
from limner.kit.crypto import RootKey
from limner.ledger import wallets
from limner.settings import Settings, load_root_key
from limner.tenancy import api_keys, apps, organizations
from tests import strict
from tests.running import Api, Client, Process, start_worker
from tests.tally import pytest_configure, pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown, tally

__all__ = ["pytest_configure", "pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown", "tally"]

ROLES = ("limner_api", "limner_worker", "limner_dispatch", "limner_operator", "limner_audit")


SLOW = ("faults", "cli", "db", "journeys", "web")
"""Folders of tests that take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first: none of them is left to one process at the end, while the others have nothing to do."""
    items.sort(key=lambda item: item.path.relative_to(Path(__file__).parent).parts[0] not in SLOW)


@dataclass(frozen=True)
class Server:
    """A running, migrated database and what reaches it."""

    home: Path
    settings: Settings
    root: RootKey
    url: str
    embedded: EmbeddedPostgres


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    for name in [name for name in os.environ if name.startswith("LIMNER_")]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="limner-test-"))
    settings = Settings(home=home, lease_s=1.0, retry_backoff_s=0.1, _env_file=None)  # type: ignore[call-arg]
    embedded = EmbeddedPostgres(home)
    try:
        with embedded.running() as url:
            root = load_root_key(settings)
            strict.migrate(url, root)
            yield Server(home, settings, root, url, embedded)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def opened(server: Server, size: int = 12, *, sells: bool = True) -> AsyncIterator[Database]:
    """A server's database under every role, with the catalog's models unless it sells nothing."""
    database = Database(Address(server.url), server.root, ROLES, size=size)
    await database.open()
    if sells:
        await demo_tenant.install_catalog(database)
    yield database
    await database.close()


@pytest_asyncio.fixture(scope="session")
async def db(server: Server) -> AsyncIterator[Database]:
    async with opened(server) as database:
        yield database


@pytest.fixture
def superuser(server: Server) -> Iterator[psycopg.Connection]:
    """The database as an intruder with the disk in hand would see it: for planting and for looking."""
    conninfo = server.embedded.superuser_conninfo().replace("dbname=postgres", "dbname=limner")
    with psycopg.connect(conninfo, autocommit=True) as conn:
        yield conn


@dataclass(frozen=True)
class Tenant:
    """An organization with one app, one key of every scope, and one end user `ann` of so many credits."""

    org_id: UUID
    slug: str
    app: apps.App
    api_key: str
    user: str = "ann"
    credits: int = 1000


MakeTenant = Callable[..., Awaitable[Tenant]]


async def tenant_of(
    db: Database,
    *,
    credits: int = 1000,
    wallet_credits: int = 0,
    welcome_mc: int = 0,
    grants: organizations.Grants = "issue",
    exposure_cap_mc: int | None = None,
    scopes: tuple[str, ...] = api_keys.SCOPES,
) -> Tenant:
    """A fresh one."""
    org_id = ids.new()
    slug = f"t-{uuid4().hex[:12]}"
    async with db.tenant_tx(org_id, "limner_operator") as tx:
        await organizations.create(tx, slug, slug, actor="test", grants=grants, exposure_cap_mc=exposure_cap_mc)
        app = await apps.create(tx, "main", "Main", actor="test", welcome_mc=welcome_mc)
        _, key = await api_keys.create(tx, app, actor="test", scopes=scopes)
        if wallet_credits:
            await wallets.top_up(tx, wallet_credits * 1000, "test", ref="seed")
        if credits:
            await wallets.grant(tx, app.id, "ann", credits * 1000, "test", ref=None, request_hash=None)
    return Tenant(org_id, slug, app, key, credits=credits)


@pytest.fixture
def make_tenant(db: Database) -> MakeTenant:
    return partial(tenant_of, db)


@pytest_asyncio.fixture
async def tenant(make_tenant: MakeTenant) -> Tenant:
    return await make_tenant()


@pytest.fixture(scope="session")
def api(server: Server, db: Database) -> Iterator[Api]:
    """One `limner api` process for the whole run."""
    process = Api(server.home)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def worker(server: Server, db: Database) -> Iterator[Process]:
    """One `limner worker` process for a module: what others submit is not taken from under them."""
    process = start_worker(server.home)
    yield process
    process.stop()


@pytest_asyncio.fixture(scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=200)) as session:
        yield session


@pytest.fixture
def client(http: aiohttp.ClientSession, api: Api, tenant: Tenant) -> Client:
    """The test's own tenant over HTTP, as its end user `ann`."""
    return Client(http, api.url, tenant.api_key)
