"""A tenant that sells the texts of a server far away, one credit each, and a worker that asks it. Import the fixtures."""

from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.kit.money import MC
from tests import acts
from tests.alone import superuser_conninfo
from tests.conftest import Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer
from tests.running import Client, Process, start_worker

__all__ = ["OWN", "far_server", "far_shop", "far_worker"]

OWN = "acme/words"


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="far")
async def far_server() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running("sk-far") as server:
        yield server


@pytest.fixture(scope="module", name="worker")
def far_worker(server: Server, db: Database, far: OpenAIServer) -> Iterator[Process]:
    with psycopg.connect(superuser_conninfo(server), autocommit=True) as conn:
        acts.empty_queue(conn)
    process = start_worker(server.home, LIMNER_DATABASE_URL=server.url, **far.environment)
    yield process
    process.stop()


@pytest_asyncio.fixture(name="shop")
async def far_shop(client: Client, db: Database, tenant: Tenant, far: OpenAIServer, worker: Process) -> Client:
    """The tenant sells texts that the far server writes, one credit each."""
    far.calm_down()
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(tx, {
            "name": OWN, "display_name": "Words", "kind": "text.generate", "price_mc": MC,
            "input_schema": offers.SCHEMAS["text.generate"],
        })  # fmt: skip
        await catalog.put_provider(
            tx, {"name": "far", "display_name": "Far", "adapter": "openai", "base_url": far.url, "config": {}}
        )
        await catalog.put_route(tx, OWN, "far", provider_model="tiny")
    return client
