"""An installation whose two providers are emulated, and tenants that sell a model by both: for tests of organizations' own keys."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import psycopg
import pytest
import pytest_asyncio

from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import ai_settings, catalog
from limner.hub.ai_settings import AiSettings
from limner.hub.provider_keys import Actor
from limner.hub.providers.openai_compatible import offers
from limner.kit.crypto import RootKey
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import openai_server, receiver
from tests.emulators.openai_server import OpenAIServer
from tests.emulators.receiver import Receiver
from tests.faults.cluster import eventually
from tests.hub.api.conftest import CheckedClient
from tests.running import Answer, Api, Client, Process, start_worker

OLD_ROOT = RootKey(b"the root key of the year before!")
PLATFORMS = "sk-platform-7f3a9be1c0d2"
CHAT, PICTURE = "acme/chat", "acme/picture"
INPUT_MC, OUTPUT_MC = 2_000_000, 10_000_000  # two and ten credits a thousand tokens
PICTURE_MC = 4_000
FIRST, SECOND = "own-first", "own-second"
CHATTING_MC = (12 * INPUT_MC + 7 * OUTPUT_MC) // 1_000_000
"""Of what the emulator counts for a whole answer; cached tokens have no price of their own here."""


@dataclass(frozen=True)
class House:
    """`first` and `second`: the platform's providers in their order; it has a key of its own for each."""

    api: Api
    worker: Process
    first: OpenAIServer
    second: OpenAIServer
    hooks: Receiver

    @property
    def said(self) -> str:
        """All that its processes wrote."""
        return self.api.output() + self.worker.output()


@dataclass
class Brought:
    """A tenant of the house, over HTTP."""

    house: House
    db: Database
    tenant: Tenant
    client: Client
    since: tuple[int, int] = field(default=(0, 0))

    async def bring(self, provider: str, key: str, **more: Any) -> Answer:
        return await self.client.call("PUT", f"/api/v1/provider-keys/{provider}", {"key": key, **more})

    async def fee(self, percent: int) -> None:
        async with self.db.tenant_tx(self.tenant.org_id, "limner_operator") as tx:
            await ai_settings.set_fee(tx, percent, Actor("operator", "test"))

    async def own_only(self) -> None:
        async with self.db.tenant_tx(self.tenant.org_id, "limner_operator") as tx:
            await ai_settings.put(tx, AiSettings(own_keys_only=True), Actor("operator", "test"))

    async def order(self, model: str = PICTURE, **wanted: Any) -> Any:
        """The 202 of a job."""
        accepted = await self.client.generate(model, input={"prompt": "a hare", **wanted})
        assert accepted.status == 202, accepted.body
        return accepted.json

    async def buy(self, model: str = PICTURE, **wanted: Any) -> Any:
        """The receipt of a job that was worked on."""
        job = await self.client.finished((await self.order(model, **wanted))["job_id"])
        return await self.receipt(job["job_id"])

    async def receipt(self, job_id: str) -> Any:
        answer = await self.client.call("GET", f"/api/v1/jobs/{job_id}/receipt")
        assert answer.status == 200, answer.body
        assert await acts.books(self.db, self.tenant.org_id) == {}
        return answer.json

    async def ask(self, model: str = CHAT, **more: Any) -> Answer:
        """One chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "a lighthouse"}], **more}
        plain = Client(self.client.http, self.client.url, self.client.api_key)  # a stream is no document
        return await plain.call("POST", "/v1/chat/completions", body)

    async def receipt_of(self, answer: Answer) -> Any:
        """Of a call, once it is settled."""
        job_id = answer.headers["x-limner-job"]

        async def settled() -> bool:
            return bool((await self.client.call("GET", f"/api/v1/jobs/{job_id}")).json["status"] != "running")

        await eventually(settled)
        return await self.receipt(job_id)

    def keys(self, server: OpenAIServer) -> list[str]:
        """Whose keys it was sent, in order, since this test began."""
        began = self.since[0] if server is self.house.first else self.since[1]
        return [asked.headers.get("Authorization", "").removeprefix("Bearer ") for asked in server.asked[began:]]


@pytest_asyncio.fixture(scope="package", loop_scope="session", name="servers")
async def far_servers() -> AsyncIterator[tuple[OpenAIServer, OpenAIServer, Receiver]]:
    async with openai_server.running() as first, openai_server.running() as second, receiver.running() as hooks:
        yield first, second, hooks


@pytest.fixture(scope="package", name="house")
def bring_house(server: Server, db: Database, servers: tuple[OpenAIServer, OpenAIServer, Receiver]) -> Iterator[House]:
    first, second, hooks = servers
    env = {
        "LIMNER_DATABASE_URL": server.url,
        "LIMNER_EGRESS_PLAIN_ORIGINS": f"{first.origin},{second.origin}",
        "LIMNER_PROVIDER_KEYS": orjson.dumps({first.origin: PLATFORMS, second.origin: PLATFORMS}).decode(),
        "LIMNER_EGRESS_ALLOW_ORIGINS": hooks.url,
        "LIMNER_LOG_LEVEL": "debug",
        "LIMNER_OLD_ROOT_KEYS": OLD_ROOT.value.hex(),
    }
    api, worker = Api(server.home, **env), start_worker(server.home, **env)
    yield House(api, worker, first, second, hooks)
    worker.stop()
    api.stop()


Shops = Any


@pytest.fixture(name="shops")
def bring_shops(
    house: House, db: Database, make_tenant: MakeTenant, http: aiohttp.ClientSession, superuser: psycopg.Connection
) -> Shops:
    """`await shops()`: another tenant that sells by `first`, then by `second`; with `only_first`, by that one alone."""
    acts.empty_queue(superuser)
    house.first.calm_down()
    house.second.calm_down()

    async def make(*, only_first: bool = False, **facts: Any) -> Brought:
        tenant = await make_tenant(credits=1000)
        await _sell(db, tenant, house, only_first=only_first, **facts)
        client = CheckedClient(http, house.api.url, tenant.api_key)
        return Brought(house, db, tenant, client, (len(house.first.asked), len(house.second.asked)))

    return make


async def _sell(db: Database, tenant: Tenant, house: House, *, only_first: bool, **facts: Any) -> None:
    places = [(FIRST, house.first)] if only_first else [(FIRST, house.first), (SECOND, house.second)]
    async with db.tenant_tx(PLATFORM, "limner_operator") as tx:
        for name, server in ((FIRST, house.first), (SECOND, house.second)):
            await catalog.put_provider(
                tx, {"name": name, "display_name": name, "adapter": "openai", "base_url": server.url}
            )
    tokens = {"price_unit": "tokens", "price_mc": 0, "input_price_mc": INPUT_MC, "cached_price_mc": INPUT_MC,
              "output_price_mc": OUTPUT_MC, "max_output_tokens": 100, **facts}  # fmt: skip
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        sold: tuple[tuple[str, offers.Kind, dict[str, Any], str], ...] = (
            (CHAT, "text.generate", tokens, "tiny"),
            (PICTURE, "image.generate", {"price_mc": PICTURE_MC}, "painter"),
        )
        for name, kind, priced, far in sold:
            await catalog.put_model(
                tx, {"name": name, "display_name": name, "kind": kind, "input_schema": offers.SCHEMAS[kind], **priced}
            )
            for place, (provider, _) in enumerate(places, start=1):
                await catalog.put_route(
                    tx, name, provider, provider_model=far, priority=place, cost_micro_usd=900 * place
                )
