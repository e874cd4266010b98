"""What answers of `/v1` say besides their bodies: that they are still coming, what is left of the limits, and who took the time."""

import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer
from tests.faults.cluster import eventually
from tests.hub.api.test_openai_chat import HELLO, KEY, MODEL, ask, books, sell
from tests.running import Api
from tests.web import document

HEARTBEAT_S = 0.2
LIMITS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
READ = {"model": "local/extract", "messages": [{"role": "user", "content": "Key points: It rained. The river rose."}]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@pytest.fixture(scope="module")
def house(server: Server, db: Database, far: OpenAIServer) -> Any:
    api = Api(
        server.home,
        LIMNER_DATABASE_URL=server.url,
        LIMNER_STREAM_HEARTBEAT_S=str(HEARTBEAT_S),
        **far.environment,
    )
    yield api
    api.stop()


@pytest_asyncio.fixture
async def shop(db: Database, make_tenant: MakeTenant, far: OpenAIServer) -> Tenant:
    far.calm_down()
    far.token_s = 0.0
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, ("far", far.url))
    return tenant


async def test_a_provider_that_is_silent_does_not_leave_a_stream_silent(
    house: Api, shop: Tenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    """Comments, which clients pass over (WHATWG HTML 9.2.6), until the first word."""
    far.then("is slow")
    status, raw, headers = await ask(house, shop, {"model": MODEL, "messages": HELLO, "stream": True})

    events = raw.decode().split("\n\n")
    silent = [event for event in events if event.startswith(":")]
    assert status == 200
    assert set(silent) == {": keep-alive"}
    assert len(silent) >= 3
    assert events[: len(silent)] == silent, "none once there are words"
    assert events[len(silent)].startswith("data: ")
    assert not {"x-limner-provider", "x-limner-overhead-ms"} & {name.lower() for name in headers}
    assert [state for state, _ in books(superuser, shop)] == ["succeeded"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_time_that_a_provider_takes_is_not_limners(
    house: Api, shop: Tenant, far: OpenAIServer, stream: bool
) -> None:
    if stream:
        far.token_s = 0.08
    else:
        far.then("is slow")
    began = time.perf_counter()
    _, _, headers = await ask(house, shop, {"model": MODEL, "messages": HELLO, "stream": stream})

    took_ms = (time.perf_counter() - began) * 1000
    assert headers["x-limner-provider"] == "far"
    assert 0 < float(headers["x-limner-overhead-ms"]) < took_ms / 2


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_tells_what_is_left_of_the_limit_as_openais_clients_read_it(
    house: Api, shop: Tenant, superuser: psycopg.Connection, stream: bool
) -> None:
    superuser.execute("UPDATE limner.app SET user_jobs_per_min = 20 WHERE org_id = %s", [shop.org_id])
    left = []
    for _ in range(2):
        status, _, headers = await ask(house, shop, {**READ, "stream": stream})
        assert status == 200
        assert headers["x-ratelimit-limit-requests"] == "20"
        assert "x-ratelimit-limit" not in headers  # one header says it
        assert headers["x-ratelimit-reset-requests"] in {f"{s}s" for s in range(1, 8)}
        left.append(int(headers["x-ratelimit-remaining-requests"]))
    assert left == [19, 18]


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "images/generations"])
async def test_a_spent_limit_answers_429_in_openais_shape_and_costs_nothing(
    house: Api, make_tenant: MakeTenant, superuser: psycopg.Connection, path: str
) -> None:
    tenant = await make_tenant(credits=100)
    superuser.execute("UPDATE limner.app SET user_jobs_per_min = 1 WHERE org_id = %s", [tenant.org_id])
    assert (await ask(house, tenant, READ))[0] == 200
    described = document.document()["paths"][f"/v1/{path}"]["post"]
    example = described["requestBody"]["content"]["application/json"]["example"]

    status, body, headers = await ask(house, tenant, example, path=path)

    assert status == 429
    document.check("POST", f"/v1/{path}", status, body)
    told = body["error"]
    assert (told["type"], told["code"], told["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
    assert (told["limit"], told["limit_size"]) == ("user", 1)
    assert int(headers["retry-after"]) == told["retry_after"] > 30
    assert [headers[name] for name in LIMITS[:2]] == ["1", "0"]
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert len(books(superuser, tenant)) == 1


async def test_reads_beyond_the_limit_answer_429_in_openais_shape(server: Server, db: Database, shop: Tenant) -> None:
    api = Api(server.home, LIMNER_DATABASE_URL=server.url, LIMNER_READS_PER_MIN="2")
    try:
        answers = [await ask(api, shop, None, path="models", method="GET") for _ in range(3)]
    finally:
        api.stop()

    assert [status for status, _, _ in answers] == [200, 200, 429]
    _, body, headers = answers[-1]
    assert (body["error"]["code"], body["error"]["limit"]) == ("rate_limit_exceeded", "reads")
    assert "retry-after" in headers
    assert [headers[name] for name in LIMITS[:2]] == ["2", "0"]


async def test_calls_are_counted_by_their_model_and_by_how_their_providers_fared(
    house: Api, shop: Tenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    asked = {"model": MODEL, "messages": HELLO}
    before = await metrics(house)
    for turn in (None, "breaks off", None):
        far.then(turn)
        await ask(house, shop, {**asked, "stream": turn is not None})
    await eventually(
        lambda: len(books(superuser, shop)) == 3 and {s for s, _ in books(superuser, shop)} == {"succeeded"}
    )
    after = await metrics(house)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert more('limner_provider_attempts_total{outcome="done",provider="far"}') == 2
    assert more('limner_provider_attempts_total{outcome="provider_connection_lost",provider="far"}') == 1
    assert more(f'limner_jobs_finished_total{{error_code="",model="{MODEL}",outcome="succeeded"}}') == 3


async def metrics(house: Api) -> dict[str, float]:
    async with aiohttp.ClientSession() as http, http.get(f"{house.url}/metrics") as answer:
        rows = [line.rpartition(" ") for line in (await answer.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


@pytest.mark.parametrize("name", ["no/such", "%00", "a%00b", "a%0Ab", "%ff", "x" * 3000, ""])
async def test_a_name_of_no_model_answers_404_whatever_it_is(house: Api, shop: Tenant, name: str) -> None:
    status, body, _ = await ask(house, shop, None, path=f"models/{name}", method="GET")

    assert (status, body["error"]["type"]) == (404, "invalid_request_error")
