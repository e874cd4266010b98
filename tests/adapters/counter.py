"""What the organization of these tests sells, and how it is bought through both doors."""

from dataclasses import dataclass
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.hub.providers.openai_compatible.offers import Kind
from tests.conftest import Tenant
from tests.emulators.far_server import FarServer
from tests.running import Answer, Api, Client

CHAT = "acme/chat"
INPUT_MC, CACHED_MC, OUTPUT_MC = 2_000_000, 1_000_000, 10_000_000
TOKENS = {
    "price_mc": 0, "price_unit": "tokens", "input_price_mc": INPUT_MC, "cached_price_mc": CACHED_MC, "output_price_mc": OUTPUT_MC,
    "max_output_tokens": 100,
}  # fmt: skip


def charge_mc(read: int, cached: int, written: int) -> int:
    """Of a call with these counts, the cached ones among those read."""
    return ((read - cached) * INPUT_MC + cached * CACHED_MC + written * OUTPUT_MC) // 1_000_000


@dataclass
class Counter:
    """One organization's catalog."""

    house: Api
    db: Database
    tenant: Tenant

    async def sell(
        self, adapter: str, far: FarServer, *, name: str = "far", place: int = 1, kind: Kind = "text.generate", model: str = CHAT,
        theirs: str | None = None, **facts: Any,
    ) -> None:  # fmt: skip
        """A model of an emulated provider, and the route to it."""
        theirs = theirs or far.models[0]
        await self.route(adapter, far.url, name=name, place=place, kind=kind, model=model, theirs=theirs, **facts)

    async def route(
        self, adapter: str, url: str, *, theirs: str, name: str = "far", place: int = 1, kind: Kind = "text.generate",
        model: str = CHAT, **facts: Any,
    ) -> None:  # fmt: skip
        """A model and its route; texts are sold by tokens."""
        priced = TOKENS if kind in {"text.generate", "text.embed", "image.describe"} else {"price_mc": 2000}
        async with self.db.tenant_tx(self.tenant.org_id, "limner_operator") as tx:
            await catalog.put_provider(tx, {"name": name, "display_name": name, "adapter": adapter, "base_url": url})
            schema = offers.SCHEMAS[kind]
            described = {"name": model, "display_name": model, "kind": kind, "input_schema": schema}
            await catalog.put_model(tx, {**described, **priced, **facts})
            await catalog.put_route(tx, model, name, provider_model=theirs, priority=place)

    def client(self, **changed: Any) -> AsyncOpenAI:
        """OpenAI's own client; it asks once."""
        settings: dict[str, Any] = {"api_key": self.tenant.api_key, "max_retries": 0, **changed}
        return AsyncOpenAI(base_url=f"{self.house.url}/v1", default_headers={"X-User-ID": self.tenant.user}, **settings)

    async def ask(self, path: str = "/v1/chat/completions", **body: Any) -> Answer:
        """A call as it is, without a client's own checks."""
        async with aiohttp.ClientSession() as http:
            asked = {"model": CHAT, "messages": [{"role": "user", "content": "a hare"}], **body}
            return await Client(http, self.house.url, self.tenant.api_key).call("POST", path, asked)

    async def buy(self, model: str = CHAT, **wanted: Any) -> tuple[Any, Any]:
        """A closed job and its receipt."""
        async with aiohttp.ClientSession() as http:
            client = Client(http, self.house.url, self.tenant.api_key)
            accepted = await client.generate(model, input=wanted)
            assert accepted.status == 202, accepted.body
            job = await client.finished(accepted.json["job_id"])
            receipt = await client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")
        return job, receipt.json
