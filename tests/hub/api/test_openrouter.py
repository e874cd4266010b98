"""OpenRouter behind the OpenAI-compatible adapter: who asks, whom it may ask, what a call really cost, and what it calls an error."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators import openrouter
from tests.emulators.openai_server import Says
from tests.emulators.openrouter import COST_MICRO_USD, STREAM_COST_MICRO_USD, OpenRouterServer
from tests.running import Api, Client, start_worker

MODEL = "acme/routed"
KEY = "sk-or-v1-5511"
CONFIG = {
    "referer": "https://acme.example", "title": "Acme", "states_cost": True,
    "routing": {"order": ["behind"], "allow_fallbacks": False},
}  # fmt: skip
TOKENS = {"price_mc": 0, "price_unit": "tokens", "input_price_mc": 1_000_000, "output_price_mc": 2_000_000}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenRouterServer]:
    async with openrouter.running(KEY) as server:
        yield server


@pytest.fixture(scope="module")
def house(server: Server, db: Database, far: OpenRouterServer) -> Iterator[Api]:
    reaching = {"LIMNER_DATABASE_URL": server.url, "LIMNER_MAX_RUNS": "1", **far.environment}
    api, worker = Api(server.home, **reaching), start_worker(server.home, **reaching)
    yield api
    api.stop()
    worker.stop()


@dataclass
class Shop:
    db: Database
    tenant: Tenant
    far: OpenRouterServer
    client: Client

    async def receipt(self, job_id: str) -> Any:
        assert await acts.books(self.db, self.tenant.org_id) == {}
        return (await self.client.call("GET", f"/api/v1/jobs/{job_id}/receipt")).json

    async def job(self) -> tuple[Any, Any]:
        accepted = await self.client.generate(MODEL, input={"prompt": "a hare"})
        assert accepted.status == 202, accepted.body
        job = await self.client.finished(accepted.json["job_id"])
        return job, await self.receipt(job["job_id"])

    async def chat(self, **more: Any) -> Any:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a hare"}], **more}
        return await self.client.call("POST", "/v1/chat/completions", body)


@pytest_asyncio.fixture
async def shop(
    db: Database, tenant: Tenant, house: Api, far: OpenRouterServer, http: aiohttp.ClientSession
) -> AsyncIterator[Shop]:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        kind: offers.Kind = "text.generate"
        facts = {"name": MODEL, "display_name": "Routed", "kind": kind, "input_schema": offers.SCHEMAS[kind], **TOKENS}
        await catalog.put_model(tx, facts)
        facts = {
            "name": "openrouter",
            "display_name": "OpenRouter",
            "adapter": "openai",
            "base_url": far.url,
            "config": CONFIG,
        }
        await catalog.put_provider(tx, facts)
        await catalog.put_route(tx, MODEL, "openrouter", provider_model="tiny", cost_micro_usd=7_000_000)
        await tx.execute("UPDATE limner.organization SET show_costs = true WHERE org_id = %s", [tx.org_id])
    yield Shop(db, tenant, far, Client(http, house.url, tenant.api_key))
    far.calm_down()


async def test_a_jobs_cost_is_what_the_answer_states_and_the_routes_figures_are_not_taken(shop: Shop) -> None:
    job, receipt = await shop.job()

    assert (job["status"], receipt["provider_cost_micro_usd"]) == ("succeeded", COST_MICRO_USD)
    asked = shop.far.asked[-1]
    assert (asked.headers["HTTP-Referer"], asked.headers["X-Title"]) == ("https://acme.example", "Acme")
    assert (asked.body["provider"], asked.body["usage"]) == (CONFIG["routing"], {"include": True})


async def test_a_calls_cost_is_too_whole_and_streamed(shop: Shop) -> None:
    whole = await shop.chat()
    streamed = await shop.chat(stream=True)

    assert (whole.status, streamed.status) == (200, 200)
    assert whole.json["provider"] == "Behind"
    for answer, cost in ((whole, COST_MICRO_USD), (streamed, STREAM_COST_MICRO_USD)):
        receipt = await shop.receipt(answer.headers["x-limner-job"])
        assert (receipt["provider_cost_micro_usd"], receipt["usage"][0]["cost_micro_usd"]) == (cost, cost)
    assert shop.far.asked[-1].body["provider"] == CONFIG["routing"]


@pytest.mark.parametrize("cost", ["0.5", -1, 1e30, True, None, float("nan")])
async def test_a_cost_that_cannot_be_true_is_left_to_the_routes_figures(shop: Shop, cost: Any) -> None:
    before = shop.far.changes
    shop.far.changes = lambda answer: {**answer, "usage": {**answer["usage"], "cost": cost}}
    try:
        _, receipt = await shop.job()
    finally:
        shop.far.changes = before

    assert receipt["provider_cost_micro_usd"] == 7_000_000


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        (openrouter.error(402, "Insufficient credits"), "provider_quota_exhausted"),
        (openrouter.error(429, "slow down", provider_name="Behind", raw="{}"), "provider_rate_limited"),
        (openrouter.error(403, "flagged", reasons=["violence"], flagged_input="an axe", provider_name="Behind"), "content_refused"),
        (openrouter.error(403, "no key", status=403), "provider_auth"),
        (openrouter.error(502, "Provider returned error", status=200, provider_name="Behind", raw=KEY), "provider_unavailable"),
        (openrouter.error(400, "x is not a valid model ID", status=400, raw="model"), "provider_refused"),
    ],
)  # fmt: skip
async def test_its_errors_are_told_apart_and_none_of_its_words_is_repeated(shop: Shop, turn: Says, code: str) -> None:
    shop.far.then(turn)

    answer = await shop.chat()

    assert answer.json["error"]["code"] == code, answer.body
    assert KEY not in answer.body.decode()


async def test_an_error_in_the_stream_ends_it_and_what_came_before_a_word_is_the_clients_error(shop: Shop) -> None:
    said = {"id": "gen-1", "choices": [], "error": {"code": 429, "message": "busy"}}
    shop.far.then(Says(200, b"data: " + orjson.dumps(said) + b"\n\n", {"Content-Type": "text/event-stream"}))

    answer = await shop.chat(stream=True)

    assert (answer.status, answer.json["error"]["code"]) == (429, "provider_rate_limited"), answer.body
