"""A shop over a database of its own: what the tests of executor, loop and duties share. Import the names you use."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.kit.cpu import CpuPool
from limner.media.store import ObjectStore
from tests import acts
from tests.alone import db_alone, server_alone, superuser_alone
from tests.conftest import Tenant
from tests.hub.doubles import Scripted, Shop, open_shop

__all__ = ["Open", "db_alone", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]

Open = Callable[..., Awaitable[Shop]]


@pytest_asyncio.fixture(scope="module", name="pool")
async def own_pool() -> AsyncIterator[CpuPool]:
    """One child."""
    pool = CpuPool(1, 2 << 30, 30)
    yield pool
    await pool.aclose()


@pytest.fixture(name="store")
def own_store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(None, tmp_path)


@pytest.fixture(name="shop")
def open_a_shop(db: Database, tenant: Tenant, store: ObjectStore, pool: CpuPool, superuser: psycopg.Connection) -> Open:
    """`await shop(provider, …)`: one that nobody else's jobs are in the way of."""
    acts.empty_queue(superuser)

    async def make(*providers: Scripted, **facts: Any) -> Shop:
        return await open_shop(db, tenant, facts.pop("store", store), pool, *providers, **facts)

    return make
