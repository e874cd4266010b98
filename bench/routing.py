"""What a provider that is down costs those whose jobs it would have had: three providers by weight, all well and one stalling, in turn."""

import argparse
import asyncio
import contextlib
import json
import statistics
import time

import aiohttp
import psycopg

from bench import rig
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from tests.emulators import openai_server, toxic
from tests.emulators.toxic import Toxic
from tests.running import Client

KEY = "sk-bench"
MODEL = "bench/words"
NAMES = ("one", "two", "three")
BREAKER = {"LIMNER_BREAKER_FAILURES": "3", "LIMNER_BREAKER_PAUSE_S": "5", "LIMNER_BREAKER_LONG_PAUSE_S": "5"}
UNLIMITED = {"LIMNER_USER_JOBS_PER_MIN": "0", "LIMNER_APP_JOBS_PER_MIN": "0", "LIMNER_READS_PER_MIN": "0"}
TIMEOUT_S = 2.0
STATES = (
    "SELECT count(*) FILTER (WHERE h.state = 'down') FROM limner.provider_health h JOIN limner.provider p ON p.id = h.provider_id"
    " WHERE p.name = ANY (%s)"
)
TIMES = "SELECT extract(epoch FROM finished_at - created_at)::float8 FROM limner.job WHERE id = ANY (%s::uuid[]) AND state = 'succeeded'"


async def sell(bench: rig.Rig, app: rig.BenchApp, lines: list[Toxic]) -> None:
    async with bench.database() as db, db.tenant_tx(app.org_id, "limner_operator") as tx:
        await catalog.put_model(
            tx, {"name": MODEL, "display_name": "Words", "kind": "text.generate", "input_schema": offers.SCHEMAS["text.generate"],
                 "price_mc": 1000, "routing": "weight"}
        )  # fmt: skip
        for name, line in zip(NAMES, lines, strict=True):
            facts = {"name": name, "display_name": name, "adapter": "openai", "base_url": f"{line.origin}/v1"}
            await catalog.put_provider(tx, facts | {"config": {"timeout_s": TIMEOUT_S}})
            await catalog.put_route(tx, MODEL, name, provider_model="tiny")


async def buy(client: Client, conn: psycopg.Connection, count: int, per_s: float) -> list[float]:
    """Seconds from order to end of each job, ordered evenly; all of them succeed, or the bench ends."""
    ordered: list[str] = []
    begin = time.monotonic()
    for n in range(count):
        await asyncio.sleep(max(begin + n / per_s - time.monotonic(), 0))
        answer = await client.generate(MODEL, input={"prompt": f"hare {n}"})
        assert answer.status == 202, answer.body
        ordered.append(answer.json["job_id"])
    until = time.monotonic() + 60
    while len(rows := conn.execute(TIMES, [ordered]).fetchall()) < count:
        assert time.monotonic() < until, f"{count - len(rows)} jobs did not succeed"
        await asyncio.sleep(0.2)
    return [row[0] for row in rows]


async def until_down(client: Client, conn: psycopg.Connection, wanted: int) -> None:
    """Jobs until so many breakers are open."""
    while conn.execute(STATES, [list(NAMES)]).fetchone() != (wanted,):
        await buy(client, conn, 10, 20)
        await asyncio.sleep(0.5)


async def measure(bench: rig.Rig, args: argparse.Namespace) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {"up": [], "down": []}
    async with contextlib.AsyncExitStack() as stack:
        far = await stack.enter_async_context(openai_server.running(KEY))
        lines = [await stack.enter_async_context(toxic.in_front_of(far.origin)) for _ in NAMES]
        origins = [line.origin for line in lines]
        env = BREAKER | {"LIMNER_EGRESS_PLAIN_ORIGINS": ",".join(origins)}
        env |= UNLIMITED | {"LIMNER_PROVIDER_KEYS": json.dumps(dict.fromkeys(origins, KEY))}
        async with bench.database() as db:
            [app] = await bench.tenants(db, 1, 1, 1)
        await sell(bench, app, lines)
        api, worker = bench.api(None, **env), bench.worker(None, **env)
        try:
            async with aiohttp.ClientSession() as http:
                client = Client(http, api.url, app.key, app.users[0])
                with rig.superuser(bench) as conn:
                    await buy(client, conn, 50, args.rate)  # warm: caches, prepared plans, connections
                    for _ in range(args.rounds):
                        took["up"] += await buy(client, conn, args.jobs, args.rate)
                        lines[0].fault = "stall"
                        await until_down(client, conn, 1)
                        took["down"] += await buy(client, conn, args.jobs, args.rate)
                        lines[0].fault = None
                        await until_down(client, conn, 0)
        finally:
            rig.stop(worker)
            rig.stop(api)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400, help="of a round, each way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=40.0, help="jobs a second")
    args = parser.parse_args()
    with rig.rig() as bench:
        took = asyncio.run(measure(bench, args))
    p95 = {name: rig.quantile_ms(seconds, 0.95) for name, seconds in took.items()}
    p50 = {name: round(statistics.median(seconds) * 1000, 1) for name, seconds in took.items()}
    ratio = round(p95["down"] / p95["up"], 2)
    rig.report(
        "routing",
        [(f"{name}: p50 / p95 of a job, ms", f"{p50[name]} / {p95[name]}") for name in took]
        + [("p95, one of three stalling, its breaker open, against all well", f"{ratio}")],
        {"p95_up_ms": p95["up"], "p95_down_ms": p95["down"], "ratio": ratio, "jobs": len(took["up"])},
    )


if __name__ == "__main__":
    main()
