"""Calls that are answered at once, under fire: whoever dies, hangs up or asks too much, every hold is closed and the ledger is right."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from tests import tiers
from tests.conftest import MakeTenant, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer
from tests.faults.cluster import ApiProcess, Cluster, eventually
from tests.tally import Tally

KEY = "sk-secret-7d1f"
MODEL = "acme/chat"
INPUT_MC, OUTPUT_MC = 1_000_000, 10_000_000  # one and ten credits a thousand tokens
READ = 12
LONGEST = 100
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "a lighthouse"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@pytest.fixture(autouse=True)
def calm(far: OpenAIServer) -> None:
    far.calm_down()
    far.token_s, far.tokens = 0.0, 20
    far.asked.clear()


async def shop(db: Database, tenant: Tenant, far: OpenAIServer, **facts: Any) -> Tenant:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(
            tx,
            {
                "name": MODEL, "display_name": "Chat", "kind": "text.generate", "input_schema": offers.SCHEMAS["text.generate"],
                "price_mc": 0, "price_unit": "tokens", "input_price_mc": INPUT_MC, "cached_price_mc": INPUT_MC,
                "output_price_mc": OUTPUT_MC, "max_output_tokens": LONGEST, **facts,
            },
        )  # fmt: skip
        await catalog.put_provider(tx, {"name": "far", "display_name": "Far", "adapter": "openai", "base_url": far.url})
        await catalog.put_route(tx, MODEL, "far", provider_model="tiny")
    return tenant


def calling(http: aiohttp.ClientSession, api: ApiProcess, tenant: Tenant, **body: Any) -> Any:
    headers = {"Authorization": f"Bearer {tenant.api_key}", "X-User-ID": tenant.user}
    return http.post(f"{api.url}/v1/chat/completions", json=ASKED | body, headers=headers)


def jobs(superuser: psycopg.Connection, tenant: Tenant) -> dict[str, tuple[str, int | None]]:
    rows = superuser.execute("SELECT id, state, price_final_mc FROM limner.job WHERE org_id = %s", [tenant.org_id])
    return {str(row[0]): (row[1], row[2]) for row in rows}


def open_jobs(superuser: psycopg.Connection, tenant: Tenant) -> int:
    return sum(state in ("queued", "running") for state, _ in jobs(superuser, tenant).values())


def held_mc(superuser: psycopg.Connection, tenant: Tenant) -> int:
    row = superuser.execute("SELECT sum(held_mc) FROM limner.wallet WHERE org_id = %s", [tenant.org_id]).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("rule", ["drain", "abort", "estimate"])
async def test_mj8_a_call_whose_process_is_killed_is_closed_by_a_worker_and_never_made_again(
    cluster: Cluster, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection, rule: str
) -> None:
    tenant = await shop(db, await make_tenant(credits=100), far, on_disconnect=rule)
    api = cluster.api(**far.environment)
    cluster.worker(**far.environment)
    far.always("stalls")
    async with aiohttp.ClientSession() as http:
        waiting = [asyncio.ensure_future(calling(http, api, tenant, stream=n % 2 == 0)) for n in range(6)]
        await eventually(lambda: len(far.asked) == 6)
        api.kill()
        assert all(
            isinstance(ended, aiohttp.ClientError) for ended in await asyncio.gather(*waiting, return_exceptions=True)
        )
    await eventually(lambda: open_jobs(superuser, tenant) == 0)
    ended = Counter(jobs(superuser, tenant).values())
    if rule == "estimate":  # it goes on, and bills, although nobody listens: the price was written down beforehand
        ((state, charge),) = ended
        assert (state, ended[state, charge]) == ("succeeded", 6)
        assert charge is not None
        assert LONGEST * OUTPUT_MC // 10**6 < charge <= (LONGEST * OUTPUT_MC + 60 * INPUT_MC) // 10**6
    else:
        assert ended == {("failed", 0): 6}
    assert (held_mc(superuser, tenant), len(far.asked)) == (0, 6)


@pytest.mark.parametrize(("calls", "worth"), tiers.counts((1_000, 100), (10_000, 1_000)))
async def test_mj2_a_wallet_pays_for_as_many_calls_as_it_is_worth_however_many_come_at_once(
    cluster: Cluster,
    db: Database,
    make_tenant: MakeTenant,
    far: OpenAIServer,
    superuser: psycopg.Connection,
    tally: Tally,
    calls: int,
    worth: int,
) -> None:
    tenant = await shop(
        db, await make_tenant(credits=worth), far, price_mc=1000, input_price_mc=0, cached_price_mc=0, output_price_mc=0
    )
    api = cluster.api(**far.environment)
    connector = aiohttp.TCPConnector(limit=256)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as http:

        async def one() -> tuple[int, str | None]:
            async with calling(http, api, tenant) as answer:
                body = await answer.json()
                return answer.status, body.get("error", {}).get("code")

        answers = Counter(await asyncio.gather(*(one() for _ in range(calls))))
    tally("MJ2", calls_at_once=calls, passed=worth)
    assert answers == {(200, None): worth, (402, "insufficient_quota"): calls - worth}
    assert len(far.asked) == worth
    await eventually(lambda: open_jobs(superuser, tenant) == 0)
    assert Counter(jobs(superuser, tenant).values()) == {("succeeded", 1000): worth}
    assert held_mc(superuser, tenant) == 0


@pytest.mark.parametrize("rule", ["drain", "abort", "estimate"])
@pytest.mark.parametrize("streams", tiers.counts(60, 1_000))
async def test_mj2_whoever_hangs_up_in_a_stream_is_charged_by_the_models_rule(
    cluster: Cluster,
    db: Database,
    make_tenant: MakeTenant,
    far: OpenAIServer,
    superuser: psycopg.Connection,
    tally: Tally,
    streams: int,
    rule: str,
) -> None:
    """At random points, before the first byte too. `drain`: by the provider's own count, to the token."""
    tenant = await shop(db, await make_tenant(credits=10_000), far, on_disconnect=rule)
    api = cluster.api(**far.environment)
    far.token_s = 0.01
    dice = random.Random(20)
    heard: dict[str, int] = {}
    room = asyncio.Semaphore(50)

    async def one(http: aiohttp.ClientSession) -> None:
        async with room:
            hasty, most = dice.random() < 0.2, dice.randrange(far.tokens + 5)
            try:
                async with (
                    asyncio.timeout(dice.uniform(0, 0.3) if hasty else None),
                    calling(http, api, tenant, stream=True) as answer,
                ):
                    heard[job := answer.headers["x-limner-job"]] = 0
                    async for line in answer.content:
                        heard[job] += b'"content"' in line
                        if heard[job] >= most:
                            answer.close()
                            return
            except TimeoutError:
                pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        await asyncio.gather(*(one(http) for _ in range(streams)))
    await eventually(lambda: open_jobs(superuser, tenant) == 0)
    tally("MJ2", streams=streams, rule=rule)
    ended = jobs(superuser, tenant)
    assert {state for state, _ in ended.values()} == {"succeeded"}
    assert held_mc(superuser, tenant) == 0
    for job, (_, charge) in ended.items():
        assert charge is not None
        if rule == "drain":
            assert (charge, far.written[job]) == (READ + 10 * far.tokens, far.tokens)
    left = [job for job in ended if far.written[job] < far.tokens]
    if rule != "drain":
        assert len(left) > streams // 10
    for job in left:
        charge = ended[job][1]
        assert charge is not None
        if (
            rule == "abort"
        ):  # the request by its length, and what had come: no less than was heard, no more than was written
            assert heard.get(job, 0) * 10 <= charge <= far.written[job] * 10 + 60
        else:
            assert LONGEST * 10 < charge <= LONGEST * 10 + 60
