"""`/v1/chat/completions`: handed on, held, charged by what the provider counted, and told as OpenAI's clients expect."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
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
from tests.faults.cluster import eventually
from tests.running import Api

KEY = "sk-secret-9c41aa07d2"
MODEL = "acme/chat"
INPUT_MC, CACHED_MC, OUTPUT_MC = 2_000_000, 1_000_000, 10_000_000  # two, one and ten credits a thousand tokens
HELLO = [{"role": "user", "content": "a lighthouse"}]
BROKEN = Says(500, {"error": {"message": "oh"}})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@pytest.fixture(scope="module")
def house(server: Server, db: Database, far: OpenAIServer) -> Any:
    api = Api(
        server.home,
        LIMNER_DATABASE_URL=server.url,
        **far.environment | {"LIMNER_EGRESS_PLAIN_ORIGINS": f"{far.origin},http://127.0.0.1:9"},
    )
    yield api
    api.stop()


@pytest.fixture(autouse=True)
def calm(far: OpenAIServer) -> None:
    far.calm_down()
    far.token_s = 0.0


@pytest_asyncio.fixture
async def shop(db: Database, make_tenant: MakeTenant, far: OpenAIServer) -> Tenant:
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, ("far", far.url))
    return tenant


async def sell(db: Database, tenant: Tenant, *providers: tuple[str, str], **facts: Any) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(
            tx,
            {
                "name": MODEL, "display_name": "Chat", "kind": "text.generate", "input_schema": offers.SCHEMAS["text.generate"],
                "price_mc": 0, "price_unit": "tokens", "input_price_mc": INPUT_MC, "cached_price_mc": CACHED_MC,
                "output_price_mc": OUTPUT_MC, "max_output_tokens": 100, **facts,
            },
        )  # fmt: skip
        for place, (name, url) in enumerate(providers, start=1):
            await catalog.put_provider(tx, {"name": name, "display_name": name, "adapter": "openai", "base_url": url})
            await catalog.put_route(tx, MODEL, name, provider_model="tiny", priority=place)


async def ask(
    house: Api,
    tenant: Tenant,
    body: Any,
    headers: Mapping[str, str] | None = None,
    *,
    path: str = "chat/completions",
    method: str = "POST",
) -> tuple[int, Any, Mapping[str, str]]:
    async with aiohttp.ClientSession() as http, http.request(
        method, f"{house.url}/v1/{path}", json=body,
        headers={"Authorization": f"Bearer {tenant.api_key}", "X-User-ID": tenant.user, **(headers or {})},
    ) as answer:  # fmt: skip
        raw = await answer.read()
        return answer.status, json.loads(raw) if answer.content_type == "application/json" else raw, answer.headers


def books(superuser: psycopg.Connection, tenant: Tenant) -> list[tuple[str, int]]:
    """Of each job its state and its price; one snapshot, so that a settlement cannot come between rows and holds."""
    found = superuser.execute(
        "SELECT o.held, j.state, coalesce(j.price_final_mc, -1)"
        " FROM (SELECT coalesce(sum(held_mc), 0) AS held FROM limner.wallet WHERE org_id = %(org)s) o"
        " LEFT JOIN limner.job j ON j.org_id = %(org)s ORDER BY j.id",
        {"org": tenant.org_id},
    ).fetchall()
    rows = [(state, price) for _, state, price in found if state is not None]
    assert (found[0][0] > 0) == any(state in ("queued", "running") for state, _ in rows), found
    return rows


# 12 tokens read, 4 of them cached; 7 written
CHARGE_MC = (8 * INPUT_MC + 4 * CACHED_MC + 7 * OUTPUT_MC) // 1_000_000


async def test_an_answer_is_handed_on_and_charged_by_its_tokens(
    house: Api, shop: Tenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    status, body, headers = await ask(house, shop, {"model": MODEL, "messages": HELLO, "temperature": 0.5, "top_p": 1})
    assert (status, body["choices"][0]["message"]["content"]) == (200, openai_server.text_of("a lighthouse"))
    assert headers["x-limner-provider"] == "far"
    assert float(headers["x-limner-credits"]) == CHARGE_MC / 1000
    assert float(headers["x-limner-balance"]) == 100 - CHARGE_MC / 1000
    sent = far.asked[-1].body
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tiny", 0.5, 100)
    await eventually(lambda: books(superuser, shop) == [("succeeded", CHARGE_MC)])


async def test_a_stream_is_handed_on_and_its_count_is_kept_from_who_did_not_ask(
    house: Api, shop: Tenant, superuser: psycopg.Connection
) -> None:
    asked = {"model": MODEL, "messages": HELLO, "stream": True}
    status, raw, headers = await ask(house, shop, asked)
    events = [line[6:] for line in raw.decode().split("\n\n") if line]
    assert (status, headers["content-type"], events[-1]) == (200, "text/event-stream; charset=utf-8", "[DONE]")
    words = [choice["delta"].get("content", "") for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(words) == "".join(f"word{n} " for n in range(20))
    charge = (12 * INPUT_MC + 20 * OUTPUT_MC) // 1_000_000
    assert books(superuser, shop) == [("succeeded", charge)]

    _, raw, _ = await ask(house, shop, {**asked, "stream_options": {"include_usage": True}})
    told = json.loads(raw.decode().split("\n\n")[-3][6:])
    assert (told["choices"], told["usage"]["completion_tokens"]) == ([], 20)


async def test_another_provider_is_asked_before_the_first_byte(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, ("nobody", "http://127.0.0.1:9/v1"), ("far", far.url))
    status, _, headers = await ask(house, tenant, {"model": MODEL, "messages": HELLO})
    assert (status, headers["x-limner-provider"]) == (200, "far")
    status, _, headers = await ask(house, tenant, {"model": MODEL, "messages": HELLO, "stream": True})
    assert (status, headers["x-limner-provider"]) == (200, "far")
    await eventually(lambda: [state for state, _ in books(superuser, tenant)] == ["succeeded", "succeeded"])


@pytest.mark.parametrize("stream", [False, True])
async def test_where_nobody_delivers_nothing_is_charged(
    house: Api, shop: Tenant, far: OpenAIServer, superuser: psycopg.Connection, stream: bool
) -> None:
    far.then(BROKEN)
    status, body, _ = await ask(house, shop, {"model": MODEL, "messages": HELLO, "stream": stream})
    assert (status, body["error"]["type"], body["error"]["code"]) == (502, "server_error", "provider_unavailable")
    assert books(superuser, shop) == [("failed", 0)]


async def test_a_provider_that_asks_to_wait_is_heard(house: Api, shop: Tenant, far: OpenAIServer) -> None:
    far.then(Says(429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}))
    status, body, headers = await ask(house, shop, {"model": MODEL, "messages": HELLO})
    assert (status, body["error"]["type"], headers["retry-after"]) == (429, "rate_limit_error", "7")


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "no/such"}, 404, "model_not_found", "model"),
        ({"messages": []}, 400, "invalid_request", "messages"),
        ({"messages": "hello"}, 400, "invalid_request", "messages"),
        ({"stream": "yes"}, 400, "invalid_request", "stream"),
        ({"n": 0}, 400, "invalid_request", "n"),
        ({"max_tokens": 101}, 400, "invalid_request", "max_tokens"),
        ({"service_tier": "priority"}, 400, "unsupported_value", "service_tier"),
        ({"web_search_options": {}}, 400, "unsupported_parameter", "web_search_options"),
        ({"n": 128, "max_tokens": 100}, 402, "insufficient_quota", None),
    ],
)
async def test_what_cannot_be_sold_is_refused_in_openais_words(
    house: Api,
    shop: Tenant,
    superuser: psycopg.Connection,
    change: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    said, body, _ = await ask(house, shop, {"model": MODEL, "messages": HELLO, **change})
    assert (said, body["error"]["code"], body["error"]["param"]) == (status, code, param)
    assert books(superuser, shop) == []


async def test_a_wrong_key_is_an_invalid_api_key(house: Api, shop: Tenant) -> None:
    for headers in ({"Authorization": "Bearer sk-nothing"}, {"Authorization": "Basic x"}):
        status, body, _ = await ask(house, shop, {"model": MODEL, "messages": HELLO}, headers)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("policy", ["drain", "abort", "estimate"])
async def test_who_hangs_up_pays_by_the_models_rule(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection, policy: str
) -> None:
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, ("far", far.url), on_disconnect=policy)
    far.token_s = 0.05
    async with aiohttp.ClientSession() as http:
        answer = await http.post(
            f"{house.url}/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "stream": True},
            headers={"Authorization": f"Bearer {tenant.api_key}", "X-User-ID": tenant.user},
        )  # fmt: skip
        job = answer.headers["x-limner-job"]
        await answer.content.readany()
        answer.close()
    await eventually(lambda: [state for state, _ in books(superuser, tenant)] == ["succeeded"])
    await asyncio.sleep(0.2)
    ((_, charge),) = books(superuser, tenant)
    written = far.written[job]
    if policy == "drain":
        assert (written, charge) == (20, (12 * INPUT_MC + 20 * OUTPUT_MC) // 1_000_000)
    else:
        assert written < 20
        read_mc = charge % (OUTPUT_MC // 1_000_000)  # what is read is an estimate from the request's length
        assert read_mc >= 0
        assert charge < 60 * 2 + (100 if policy == "estimate" else written + 1) * OUTPUT_MC // 1_000_000 + 1


async def test_a_budget_holds_however_many_ask_at_once(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=10)
    await sell(db, tenant, ("far", far.url), price_mc=1000, input_price_mc=0, cached_price_mc=0, output_price_mc=0)
    before = len(far.asked)
    answers = await asyncio.gather(*(ask(house, tenant, {"model": MODEL, "messages": HELLO}) for _ in range(40)))
    assert sorted(status for status, _, _ in answers) == [200] * 10 + [402] * 30
    assert len(far.asked) - before == 10
    await eventually(lambda: len([1 for state, _ in books(superuser, tenant) if state == "succeeded"]) == 10)


async def test_what_an_answered_call_has_left_over_pays_for_the_next_one_at_once(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer
) -> None:
    tenant = await make_tenant(credits=1)
    await sell(db, tenant, ("far", far.url), input_price_mc=0, cached_price_mc=0, output_price_mc=8_000_000)
    headers = {"Authorization": f"Bearer {tenant.api_key}", "X-User-ID": tenant.user}
    statuses = []
    async with aiohttp.ClientSession(house.url, headers=headers) as http:
        for _ in range(5):  # each holds 0.8 credits and costs 0.056
            async with http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO}) as answer:
                await answer.read()
                statuses.append(answer.status)
    assert statuses == [200, 200, 200, 200, 402]


async def test_a_text_is_read_and_vectors_are_made_without_any_provider(house: Api, shop: Tenant) -> None:
    words = "Summarise in one sentence: The harbour froze in January. No ship left it until March. Gulls stayed."
    asked = {"model": "local/extract", "messages": [{"role": "user", "content": words}]}
    status, body, headers = await ask(house, shop, asked)
    assert status == 200
    assert body["choices"][0]["message"]["content"] in words
    assert body["usage"]["completion_tokens"] > 0
    assert headers["x-limner-provider"] == "local"

    status, raw, _ = await ask(house, shop, {**asked, "stream": True})
    events = [line[6:] for line in raw.decode().split("\n\n") if line]
    streamed = "".join(
        choice["delta"].get("content", "") for event in events[:-1] for choice in json.loads(event)["choices"]
    )
    assert (status, streamed) == (200, body["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stream", [False, True])
async def test_mj4_a_call_with_a_key_is_made_once_and_answered_again(
    house: Api, shop: Tenant, far: OpenAIServer, superuser: psycopg.Connection, stream: bool
) -> None:
    asked = {"model": MODEL, "messages": HELLO, "stream": stream}
    key = {"Idempotency-Key": "once"}
    before = len(far.asked)
    first = await ask(house, shop, asked, key)
    await eventually(lambda: [state for state, _ in books(superuser, shop)] == ["succeeded"])
    spent = books(superuser, shop)
    again = await ask(house, shop, dict(reversed(asked.items())), key)
    assert (again[0], again[1]) == (first[0], first[1])
    assert (again[2]["idempotent-replayed"], again[2]["content-type"]) == ("true", first[2]["content-type"])
    assert (len(far.asked) - before, books(superuser, shop)) == (1, spent)
    status, body, _ = await ask(house, shop, {**asked, "temperature": 1}, key)
    assert (status, body["error"]["code"]) == (422, "idempotency_key_reused")


async def test_mj4_a_refusal_is_told_again_and_a_call_in_flight_is_not_made_twice(
    house: Api, shop: Tenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    asked = {"model": MODEL, "messages": HELLO}
    far.then(BROKEN)
    for _ in range(2):
        status, body, _ = await ask(house, shop, asked, {"Idempotency-Key": "broken"})
        assert (status, body["error"]["code"]) == (502, "provider_unavailable")
    far.token_s = 0.05
    slow = {**asked, "stream": True}
    first = asyncio.create_task(ask(house, shop, slow, {"Idempotency-Key": "slow"}))
    await eventually(lambda: len(books(superuser, shop)) == 2)
    status, body, headers = await ask(house, shop, slow, {"Idempotency-Key": "slow"})
    assert (status, body["error"]["code"], headers["retry-after"]) == (409, "idempotency_key_in_use", "1")
    assert (await first)[0] == 200


async def test_a_provider_that_rests_is_passed_over_and_the_receipt_says_so(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer
) -> None:
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, ("busy", far.url), ("free", far.url))
    far.then(Says(429, {"error": {"message": "slow down"}}, {"Retry-After": "60"}))
    wanted = {"model": MODEL, "messages": HELLO}
    assert (await ask(house, tenant, wanted))[2]["x-limner-provider"] == "free"
    asked = len(far.asked)

    status, _, headers = await ask(house, tenant, wanted)

    assert (status, headers["x-limner-provider"], len(far.asked)) == (200, "free", asked + 1)
    async with aiohttp.ClientSession() as http, http.get(
        f"{house.url}/api/v1/jobs/{headers['x-limner-job']}/receipt",
        headers={"X-API-Key": tenant.api_key, "X-User-ID": tenant.user},
    ) as answer:  # fmt: skip
        receipt = await answer.json()
    (attempt,) = receipt["attempts"]
    assert attempt["rule"].startswith("2 of 2 by priority 2, after busy was passed over (it asked for a rest until 20")


async def test_where_one_provider_fails_and_the_other_rests_the_client_hears_when_to_come_back(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, ("broken", far.url), ("busy", far.url))
    far.then(BROKEN, Says(429, {"error": {"message": "slow down"}}, {"Retry-After": "60"}))
    wanted = {"model": MODEL, "messages": HELLO}
    assert (await ask(house, tenant, wanted))[0] == 429, "who asks first hears it from the provider"

    for streamed in (False, True):
        far.then(BROKEN)
        status, body, headers = await ask(house, tenant, wanted | {"stream": streamed})
        assert (status, body["error"]["code"]) == (503, "provider_unavailable")
        assert 50 < int(headers["Retry-After"]) <= 60
    assert books(superuser, tenant) == [("failed", 0)] * 3
