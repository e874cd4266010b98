"""Texts by `POST /api/v1/generate`: a task, a text and a wish, by the same models and at the same token prices as `/v1`."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer, Says
from tests.running import Api, Client, start_worker

KEY = "sk-secret-5a0be1"
MODEL, VECTORS = "acme/writer", "acme/vectors"
INPUT_MC, OUTPUT_MC = 2_000_000, 10_000_000  # two and ten credits a thousand tokens
TEXT = "The harbour froze in January. No ship left it until March. Gulls stayed."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Server, db: Database, far: OpenAIServer) -> Iterator[str]:
    env = {"LIMNER_DATABASE_URL": server.url, **far.environment}
    worker, api = start_worker(server.home, **env), Api(server.home, **env)
    yield api.url
    worker.stop()
    api.stop()


@pytest_asyncio.fixture
async def shop(db: Database, make_tenant: MakeTenant, far: OpenAIServer) -> Tenant:
    far.calm_down()
    tenant = await make_tenant(credits=100)
    by_tokens = {"price_mc": 0, "price_unit": "tokens", "input_price_mc": INPUT_MC, "cached_price_mc": INPUT_MC}
    sold: tuple[tuple[str, offers.Kind, int], ...] = ((MODEL, "text.generate", OUTPUT_MC), (VECTORS, "text.embed", 0))
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_provider(tx, {"name": "far", "display_name": "Far", "adapter": "openai", "base_url": far.url})
        for name, kind, price in sold:
            facts = {
                "name": name,
                "display_name": name,
                "kind": kind,
                "input_schema": offers.SCHEMAS[kind],
                "max_output_tokens": 200,
            }
            await catalog.put_model(tx, {**facts, **by_tokens, "output_price_mc": price})
            await catalog.put_route(tx, name, "far", provider_model="tiny")
    return tenant


@pytest_asyncio.fixture
async def client(url: str, shop: Tenant) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as http:
        yield Client(http, url, shop.api_key, shop.user)


async def done(client: Client, model: str, **wanted: Any) -> tuple[Any, Any]:
    """The finished job, and its receipt."""
    accepted = await client.call("POST", "/api/v1/generate", {"model": model, "input": wanted})
    assert accepted.status == 202, accepted.json
    job = await client.finished(accepted.json["job_id"])
    receipt = await client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")
    return job, receipt.json


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"prompt": "a lighthouse", "system": "Be short."}, ["Be short.", "a lighthouse"]),
        ({"task": "rewrite", "text": TEXT, "prompt": "Be merry."}, ["Be merry.", TEXT]),
        ({"task": "summarise", "text": TEXT}, ["Summarise", TEXT]),
        ({"task": "translate", "text": TEXT, "language": "French"}, ["into French", TEXT]),
    ],
)
async def test_a_task_becomes_a_chat_and_is_charged_by_its_tokens(
    client: Client, far: OpenAIServer, wanted: dict[str, Any], told: list[str]
) -> None:
    job, receipt = await done(client, MODEL, **wanted)
    assert job["status"] == "succeeded", job
    sent = far.asked[-1].body
    said = "\n".join(message["content"] for message in sent["messages"])
    assert all(words in said for words in told)
    assert sent["max_tokens"] == 200  # the schema's own default bows to the model's limit
    assert receipt["credits"]["charged"] == "0.094"  # 12 tokens read, 7 written
    used = {use["kind"]: use["quantity"] for use in receipt["usage"]}
    assert used == {"input_tokens": 12, "output_tokens": 7, "cached_input_tokens": 4}
    assert receipt["token_prices"] == {"call": "0", "input": "2000", "cached": "2000", "output": "10000"}


async def test_a_model_that_judges_takes_no_jobs(client: Client, db: Database, shop: Tenant, far: OpenAIServer) -> None:
    facts = {"name": "acme/judge", "display_name": "Judge", "kind": "text.moderate", "price_mc": 5}
    async with db.tenant_tx(shop.org_id, "limner_operator") as tx:
        await catalog.put_model(tx, {**facts, "input_schema": offers.SCHEMAS["text.moderate"]})
        await catalog.put_route(tx, "acme/judge", "far", provider_model="tiny")
    far.asked.clear()

    refused = await client.call("POST", "/api/v1/generate", {"model": "acme/judge", "input": {"input": "a harbour"}})

    assert (refused.status, refused.json["code"]) == (400, "model_not_supported")
    assert "/v1/moderations" in refused.json["details"]["/model"][0]
    assert far.asked == []


async def test_what_a_provider_does_not_count_is_estimated_within_the_hold(client: Client, far: OpenAIServer) -> None:
    answer = {"choices": [{"message": {"content": "word " * 100}, "finish_reason": "stop"}]}
    far.then(Says(200, answer))
    _, receipt = await done(client, MODEL, prompt="a lighthouse", max_tokens=150)
    assert {use["unit"] for use in receipt["usage"]} == {"estimated_token"}
    assert 1 < float(receipt["credits"]["charged"]) <= float(receipt["credits"]["held"]) < 2


async def test_an_absurd_count_never_costs_more_than_was_held(client: Client, far: OpenAIServer) -> None:
    usage = {"prompt_tokens": 10**11, "completion_tokens": 10**11}
    far.then(Says(200, {"choices": [{"message": {"content": "words"}, "finish_reason": "stop"}], "usage": usage}))
    _, receipt = await done(client, MODEL, prompt="a lighthouse")
    assert receipt["credits"]["charged"] == receipt["credits"]["held"]


async def test_a_vector_is_made_by_the_tokens_of_its_text(client: Client) -> None:
    job, receipt = await done(client, VECTORS, text=TEXT)
    assert job["outputs"][0]["vector"]
    assert [use["kind"] for use in receipt["usage"]] == ["input_tokens", "output_tokens"]


async def test_prices_of_the_order_hold_for_its_end(
    client: Client, db: Database, shop: Tenant, superuser: psycopg.Connection
) -> None:
    """Ordered for a little later, repriced meanwhile."""
    soon = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()
    order = {"model": MODEL, "input": {"prompt": "a lighthouse"}, "run_at": soon}
    accepted = await client.call("POST", "/api/v1/generate", order)
    superuser.execute(
        "UPDATE limner.model SET input_price_mc = input_price_mc * 9, output_price_mc = output_price_mc * 9 WHERE org_id = %s",
        [shop.org_id],
    )
    await client.finished(accepted.json["job_id"])
    receipt = await client.call("GET", f"/api/v1/jobs/{accepted.json['job_id']}/receipt")
    assert receipt.json["credits"]["charged"] == "0.094"


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({}, "/input/prompt"),
        ({"task": "write", "text": TEXT}, "/input/prompt"),
        ({"task": "rewrite", "prompt": "merrily"}, "/input/text"),
        ({"task": "translate", "text": TEXT}, "/input/language"),
        ({"task": "sing", "text": TEXT}, "/input/task"),
        ({"prompt": "a lighthouse", "max_tokens": 201}, "/input/max_tokens"),
    ],
)
async def test_an_order_that_lacks_something_names_it(client: Client, wanted: dict[str, Any], pointer: str) -> None:
    refused = await client.call("POST", "/api/v1/generate", {"model": MODEL, "input": wanted})
    assert (refused.status, list(refused.json["details"])) == (400, [pointer])


async def test_a_dry_run_tells_what_would_be_held(client: Client) -> None:
    foreseen = await client.call(
        "POST", "/api/v1/generate?dry_run=1", {"model": MODEL, "input": {"prompt": "a" * 1000}}
    )
    accepted = await client.call("POST", "/api/v1/generate", {"model": MODEL, "input": {"prompt": "a" * 1000}})
    assert foreseen.json["tokens_charged"] == accepted.json["tokens_charged"] == 4  # rounded down: 2.3 read, 2 written


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"task": "summarise", "text": TEXT, "prompt": "In one sentence."}, TEXT.split(". ", maxsplit=1)[0] + "."),
        (
            {"task": "answer", "text": TEXT, "prompt": "When did a ship leave the harbour?"},
            "No ship left it until March.",
        ),
        ({"task": "fix_typos", "text": "The gulls froze in Janaury."}, "The gulls froze in January."),
    ],
)
async def test_extracts_are_made_without_any_provider(client: Client, wanted: dict[str, Any], expected: str) -> None:
    job, receipt = await done(client, "local/extract", **wanted)
    assert job["outputs"][0]["text"] == expected
    assert 0 < float(receipt["credits"]["charged"]) < 0.1


async def test_vectors_are_made_without_any_provider(client: Client) -> None:
    job, _ = await done(client, "local/embed", text="a quiet harbour")
    assert len(job["outputs"][0]["vector"]) == 384
