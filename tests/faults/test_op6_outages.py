"""OP6: a provider's outage costs nobody credits. Breakers open, are shared by all processes, and heal; permits hold over all of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import Server, Tenant
from tests.emulators import (
    anthropic_server,
    defapi_server,
    gemini_server,
    openai_server,
    openrouter,
    replicate_server,
    toxic,
)  # fmt: skip
from tests.emulators.toxic import FAULTS, Fault, Toxic
from tests.faults.cluster import ApiProcess, Cluster, eventually
from tests.running import Client
from tests.tally import Tally

KEY = "sk-secret-51c0aa"
BREAKER = {"LIMNER_BREAKER_FAILURES": "3", "LIMNER_BREAKER_PAUSE_S": "0.5", "LIMNER_BREAKER_LONG_PAUSE_S": "1.5"}
TIMEOUT_S = 1.5
CROWDED_S = 5.0
"""For many calls at once: what waits for this machine is not down."""


@dataclass(frozen=True)
class Far:
    """A kind of provider and its emulator. A new adapter joins by a line in EMULATORS."""

    name: str
    adapter: str
    kind: offers.Kind
    provider_model: str
    path: str
    running: Callable[[str], AbstractAsyncContextManager[Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S


POLLED = {"poll_s": 0.05}
POLLED_S = 2.5
"""For a task: it is ordered, asked after, and fetched."""
EMULATORS = (
    Far("openai", "openai", "text.generate", "tiny", "/v1", openai_server.running),
    Far("openrouter", "openai", "text.generate", "tiny", "/api/v1", openrouter.running, {"states_cost": True}),
    Far("anthropic", "anthropic", "text.generate", "claude-small", "/v1", anthropic_server.running),
    Far("gemini", "gemini", "text.generate", "gemini-small", "/v1beta", gemini_server.running),
    Far("replicate", "replicate", "image.generate", "acme/painter", "/v1", replicate_server.running, POLLED, POLLED_S),
    Far("defapi", "defapi", "image.generate", "google/painter", "", defapi_server.running, POLLED, POLLED_S),
)


@dataclass(frozen=True)
class House:
    """One API, workers, and a bad line to each emulator for each fault, and one more."""

    api: ApiProcess
    cluster: Cluster
    env: dict[str, str]
    lines: dict[tuple[str, str], Toxic]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def lines() -> AsyncIterator[dict[tuple[str, str], Toxic]]:
    async with AsyncExitStack() as stack:
        found = {}
        for far in EMULATORS:
            emulator = await stack.enter_async_context(far.running(KEY))
            for name in (*FAULTS, "shared"):
                found[far.name, name] = await stack.enter_async_context(toxic.in_front_of(emulator.origin))
        yield found


@pytest.fixture(scope="module")
def house(server: Server, db: Database, lines: dict[tuple[str, str], Toxic]) -> Iterator[House]:
    cluster = Cluster(server)
    origins = [line.origin for line in lines.values()]
    env = BREAKER | {
        "LIMNER_EGRESS_PLAIN_ORIGINS": ",".join(origins),
        "LIMNER_PROVIDER_KEYS": json.dumps(dict.fromkeys(origins, KEY)),
        "LIMNER_EGRESS_ALLOW_ORIGINS": ",".join({line.upstream for line in lines.values()}),  # what tasks made is there
    }
    api = cluster.api(wait=False, **env)  # type: ignore[arg-type]
    cluster.worker(**env)  # type: ignore[arg-type]
    api.wait()
    yield House(api, cluster, env, lines)
    cluster.end()


@dataclass(frozen=True)
class Outage:
    """One model whose only provider stands behind one bad line."""

    conn: psycopg.Connection
    tenant: Tenant
    client: Client
    line: Toxic
    name: str

    async def buy(self, count: int) -> list[str]:
        bought = [await self.client.generate(f"acme/{self.name}", input={"prompt": f"hare {n}"}) for n in range(count)]
        assert {answer.status for answer in bought} <= {202}, bought[0].body
        return [answer.json["job_id"] for answer in bought]

    def health(self) -> Any:
        """(state, last error, whether it rests); None before anybody asked."""
        return self.conn.execute(
            "SELECT h.state, h.last_error, h.rest_until > clock_timestamp() FROM limner.provider_health h"
            " JOIN limner.provider p ON p.org_id = h.org_id AND p.id = h.provider_id WHERE h.org_id = %s AND p.name = %s",
            [self.tenant.org_id, self.name],
        ).fetchone()

    def troubled(self) -> bool:
        state, _, rests = self.health() or ("", "", False)
        return state == "down" or bool(rests)

    async def endure(self, fault: Fault, count: int) -> list[Any]:
        """Jobs while it lasts, and one afterwards, which finds the provider well: all of them, closed."""
        self.line.fault = fault
        job_ids = await self.buy(count)
        if fault != "latency":
            await eventually(self.troubled, 30)
        self.line.fault = None
        closed = [await self.client.finished(job_id, 60 + count) for job_id in job_ids]
        [late] = await self.buy(1)
        closed.append(await self.client.finished(late))
        assert closed[-1]["status"] == "succeeded", (fault, closed[-1])
        await eventually(lambda: (self.health() or ("",))[0] in {"healthy", "degraded"})
        return closed


async def sell(
    db: Database, tenant: Tenant, far: Far, name: str, line: Toxic, timeout_s: float = TIMEOUT_S, **limits: int
) -> None:
    schema = offers.SCHEMAS[far.kind]
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(
            tx, {"name": f"acme/{name}", "display_name": name, "kind": far.kind, "input_schema": schema, "price_mc": MC}
        )
        await catalog.put_provider(
            tx, {"name": name, "display_name": name, "adapter": far.adapter, "base_url": line.origin + far.path,
                 "config": {**far.config, "timeout_s": timeout_s}, **limits}
        )  # fmt: skip
        await catalog.put_route(tx, f"acme/{name}", name, provider_model=far.provider_model)


@pytest.mark.parametrize("far", EMULATORS, ids=lambda far: far.name)
@pytest.mark.parametrize("count", tiers.counts(None, 50, 200))
async def test_op6_outages_of_any_provider_charge_nobody_and_heal(
    db: Database, tenant: Tenant, house: House, http: aiohttp.ClientSession, superuser: psycopg.Connection, far: Far,
    count: int, tally: Tally,
) -> None:  # fmt: skip
    await endure_all(db, tenant, house, Client(http, house.api.url, tenant.api_key), superuser, far, count, tally)


@pytest.mark.parametrize("far", [EMULATORS[0], EMULATORS[-2]], ids=lambda far: far.name)
async def test_op6_eight_kinds_of_outage_charge_nobody_and_heal(
    db: Database, tenant: Tenant, house: House, http: aiohttp.ClientSession, superuser: psycopg.Connection, far: Far,
    tally: Tally,
) -> None:  # fmt: skip
    await endure_all(db, tenant, house, Client(http, house.api.url, tenant.api_key), superuser, far, 3, tally)


async def endure_all(
    db: Database, tenant: Tenant, house: House, client: Client, superuser: psycopg.Connection, far: Far, count: int,
    tally: Tally,
) -> None:  # fmt: skip
    """Every fault at once, each on a line of its own: nobody is charged for what failed, and each line heals."""
    outages: dict[Fault, Outage] = {}
    for fault in FAULTS:
        name, line = f"{far.name}-{fault.replace(' ', '-')}", house.lines[far.name, fault]
        await sell(db, tenant, far, name, line, far.timeout_s if count < 10 else CROWDED_S)
        outages[fault] = Outage(superuser, tenant, client, line, name)

    closed = await asyncio.gather(*(outages[fault].endure(fault, count) for fault in FAULTS))

    jobs = [job for of_fault in closed for job in of_fault]
    won = [job for job in jobs if job["status"] == "succeeded"]
    assert {job["status"] for job in closed[FAULTS.index("latency")]} == {"succeeded"}, "slow is not down"
    assert {job["status"] for job in closed[FAULTS.index("429")]} == {"succeeded"}, "who waits uses up no run"
    assert len(jobs) == len(FAULTS) * (count + 1)
    assert {job["tokens_charged"] for job in jobs if job not in won} <= {0}
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == ((tenant.credits - len(won)) * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}
    assert acts.count(superuser, "SELECT count(*) FROM limner.job_queue WHERE org_id = %s", tenant.org_id) == 0
    tally("OP6", far=far.name, faults=len(FAULTS), jobs=len(jobs), won=len(won), charged_failures=0)


async def test_op6_what_a_worker_learns_a_call_of_the_api_heeds_at_once(
    db: Database, tenant: Tenant, house: House, http: aiohttp.ClientSession, superuser: psycopg.Connection
) -> None:
    """A wrong key, which a worker met; the API asks nobody, holds nothing, and says when to come again."""
    line = house.lines["openai", "shared"]
    await sell(db, tenant, EMULATORS[0], "shared", line)
    client = Client(http, house.api.url, tenant.api_key)
    outage = Outage(superuser, tenant, client, line, "shared")
    line.fault = "wrong key"
    [job_id] = await outage.buy(1)
    await eventually(outage.troubled)
    asked = len(line.arrived)

    answer = await client.call(
        "POST", "/v1/chat/completions", {"model": "acme/shared", "messages": [{"role": "user", "content": "hare"}]}
    )

    assert (answer.status, answer.json["error"]["code"]) == (503, "provider_unavailable")
    assert 1 <= int(answer.headers["Retry-After"]) <= 3
    assert len(line.arrived) == asked
    assert acts.count(superuser, "SELECT count(*) FROM limner.job WHERE org_id = %s", tenant.org_id) == 1
    metrics = await client.call("GET", "/metrics")
    assert b'limner_provider_state{provider="local"}' in metrics.body
    line.fault = None
    assert (await client.finished(job_id))["status"] == "succeeded"


def most_within(at: list[float], window_s: float) -> int:
    at = sorted(at)
    return max(sum(begin <= other < begin + window_s for other in at) for begin in at)


@pytest.mark.parametrize(("count", "per_min", "window_s"), tiers.counts(None, (120, 1000, 3), (500, 50, 60)))
async def test_op6_four_workers_never_ask_a_limited_key_more_often_than_it_allows(
    db: Database, tenant: Tenant, house: House, http: aiohttp.ClientSession, superuser: psycopg.Connection, count: int,
    per_min: int, window_s: int, tally: Tally,
) -> None:  # fmt: skip
    """Fifty in any window, by the provider's own count; no job fails, whatever it has to wait."""
    line = house.lines["openai", "shared"]
    line.fault = None
    await sell(db, tenant, EMULATORS[0], "limited", line, CROWDED_S, requests_per_min=per_min, window_s=window_s)
    for _ in range(3):
        house.cluster.worker(**house.env)  # type: ignore[arg-type]
    outage = Outage(superuser, tenant, Client(http, house.api.url, tenant.api_key), line, "limited")
    del line.arrived[:]

    job_ids = await outage.buy(count)
    closed = [await outage.client.finished(job_id, 60 + 3 * window_s * count / 50) for job_id in job_ids]

    most = most_within(line.arrived, window_s)
    tally("OP6", limited=count, allowed=50, most_in_a_window=most, took_s=round(line.arrived[-1] - line.arrived[0]))
    assert {job["status"] for job in closed} == {"succeeded"}
    assert len(line.arrived) == count
    assert most <= 50
