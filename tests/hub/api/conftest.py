"""An installation of its own for these tests: no worker touches its jobs unless a module starts one."""

from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
import psycopg
import pytest

from limner.db.pools import Database
from tests import acts
from tests.alone import api_alone, db_that_sells, server_alone, superuser_alone, superuser_conninfo
from tests.conftest import Server, Tenant
from tests.hub.api.refusing import Refusing
from tests.running import Answer, Api, Client, Process, start_worker
from tests.web import document

__all__ = ["api_alone", "db_that_sells", "server_alone", "superuser_alone"]


class CheckedClient(Client):
    """Holds every answer against the API's own OpenAPI document."""

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        answer = await super().call(method, path, body, data=data, headers=headers)
        if path.startswith(("/api/", "/v1/")):
            document.check(method, path, answer.status, answer.json)
        return answer


@pytest.fixture(scope="module")
def worker(server: Server, db: Database) -> Iterator[Process]:
    with psycopg.connect(superuser_conninfo(server), autocommit=True) as conn:
        acts.empty_queue(conn)  # of what modules without a worker left behind
    process = start_worker(server.home, LIMNER_DATABASE_URL=server.url)
    yield process
    process.stop()


@pytest.fixture
def client(http: aiohttp.ClientSession, api: Api, tenant: Tenant) -> Client:
    return CheckedClient(http, api.url, tenant.api_key)


@pytest.fixture
def refusing(client: Client, tenant: Tenant, superuser: psycopg.Connection) -> Refusing:
    return Refusing(client, tenant, superuser)
