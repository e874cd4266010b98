"""Submits a second: over HTTP on one API core, beside pgbench calling the same function in the same run."""

import argparse
import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import orjson
import psycopg
import uvloop
from psycopg.conninfo import conninfo_to_dict

from bench import rig
from limner.db.context import PLATFORM, ContextSigner
from limner.db.pools import runtime_conninfo
from limner.hub import catalog
from limner.hub.remembered import CompiledModel
from limner.hub.schema import InputSchema

PROMPT = "A quiet harbour at sunset, long shadows on the water"
USER_RATE, APP_RATE = 6_000, 1_000_000
"""Jobs a minute: the limits are enforced, and never reached."""
SHARED = 8
ID = "lpad(to_hex({k}), 12, '0') || '7' || lpad(to_hex(:client_id::bigint + {arm}), 19, '0')"
# ids as the API makes them: in the order of time (:k begins at the clock's milliseconds and counts)
FUNCTION = """\\set n random(1, {users})
SELECT * FROM limner.submit_job('{ctx}', ({id})::uuid, '{app}',
  'user-' || ((:n - 1)::text), '00000000-0000-7000-8000-000000000001', 'generate', '{model}', 'local/canvas', 'image.generate', 1000, 1000,
  10, NULL, sha256(:k::text::bytea), '{input}'::jsonb, 1, 86400, 3, NULL, NULL, false, NULL, {user_rate}, {app_rate})
"""
ROW = (
    '{{"org": "{org}", "job": "\' || {id} || \'", "app": "{app}", "external": "user-\' || (((:n + {place}) % {users})::text) || \'",'
    ' "route": "generate", "model_id": "{model}", "model": "local/canvas", "kind": "image.generate", "unit_price": 1000, "hold": 1000,'
    ' "priority": 10, "key": null, "hash": "\\\\x'
    + "00"
    * 32
    + '", "input": {input}, "wait": 1, "deadline_s": 86400, "max_runs": 3,'
    ' "request_id": null, "traceparent": null, "run_at": null, "user_rate": {user_rate}, "app_rate": {app_rate}}}'
)


def requests(url: str, apps: list[rig.BenchApp], count: int = 100_000) -> Iterator[bytes]:
    """Requests for random users of random apps, every tenth with an idempotency key of its own; made beforehand."""
    prepared = []
    for number in range(count):
        app = random.choice(apps)
        body = {"model": "local/canvas", "input": {"prompt": PROMPT}}
        if number % 10 == 0:
            body["idempotency_key"] = f"bench-{number}-{random.getrandbits(64):x}"
        prepared.append(rig.post(url, "/api/v1/generate", app.key, random.choice(app.users), orjson.dumps(body)))
    return itertools.cycle(prepared)


async def prepare(bench: rig.Rig, args: argparse.Namespace) -> tuple[list[rig.BenchApp], str, str]:
    """The tenants, and two pgbench scripts over them: one submit a commit, and SHARED of them, as the API's lanes send them."""
    async with bench.database() as db:
        apps = await bench.tenants(db, args.orgs, args.apps, args.users)
        async with db.tenant_tx(PLATFORM) as tx:
            model = await catalog.find_model(tx, "local/canvas")
        assert model is not None
        signer = ContextSigner(bench.root, db.clock)
        parsed = CompiledModel(model, InputSchema(model.input_schema)).schema.parse({"prompt": PROMPT})
        body = json.dumps(parsed).replace("'", "''")  # a space behind each colon: `:1` is a variable to pgbench
        facts = {"users": args.users, "model": model.id, "input": body, "user_rate": USER_RATE, "app_rate": APP_RATE}
        named = [facts | {"ctx": signer.sign(app.org_id), "org": app.org_id, "app": app.app_id} for app in apps]
        return apps, _single(named), _shared(named, signer.sign(*{app.org_id for app in apps}))


def _single(apps: list[dict[str, Any]]) -> str:
    """One app after another, as \\if branches."""
    lines = ["\\set k :k + 1", f"\\set pick random(1, {len(apps)})"]
    for place, facts in enumerate(apps, start=1):
        lines.append(("\\if" if place == 1 else "\\elif") + f" :pick = {place}")
        lines.append(FUNCTION.format(**facts, id=ID.format(k=":k::bigint", arm=0)).strip() + ";")
    return "\n".join([*lines, "\\endif"]) + "\n"


def _shared(apps: list[dict[str, Any]], ctx: str) -> str:
    """SHARED submits of as many apps as there are, in the order of the apps; each connection has users of its own."""
    chosen = sorted(apps * SHARED, key=lambda facts: str(facts["app"]))[:: max(len(apps), 1)][:SHARED]
    rows = [
        ROW.format(**facts, id=ID.format(k=f"(:k::bigint * 16 + {place})", arm=100_000), place=place)
        for place, facts in enumerate(chosen)
    ]
    batch = "'[" + ", ".join(rows) + "]'"
    return f"\\set k :k + 1\n\\set n random(1, {apps[0]['users']})\nSELECT * FROM limner.submit_jobs('{ctx}', ({batch})::json);\n"


def _jobs(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT count(*) FROM limner.job").fetchone()
    assert row is not None
    return int(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, choices=range(2, 41), metavar="2-40",
                        help="of each measurement; a signed context lives for 60")  # fmt: skip
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--orgs", type=int, default=10)
    parser.add_argument("--apps", type=int, default=2)
    parser.add_argument("--users", type=int, default=50)
    args = parser.parse_args()
    with rig.rig() as bench:
        apps, script, shared = asyncio.run(prepare(bench, args))
        info = conninfo_to_dict(runtime_conninfo(bench.url, "limner_api", bench.root))
        conninfo = {key: str(info[key]) for key in ("host", "user", "password", "dbname")}
        direct = rig.pgbench(bench.embedded, conninfo, script, args.clients, args.seconds)
        with rig.superuser(
            bench
        ) as conn:  # a batch leaves out what it would wait for: the jobs are counted, not the statements
            before = _jobs(conn)
            rig.pgbench(bench.embedded, conninfo, shared, max(args.clients // SHARED, 1), args.seconds)
            lanes = (_jobs(conn) - before) / args.seconds
        rig.pin_others(bench.embedded, core=1)
        api = bench.api(core=0, LIMNER_USER_JOBS_PER_MIN=str(USER_RATE), LIMNER_APP_JOBS_PER_MIN=str(APP_RATE))
        try:
            load = requests(api.url, apps)
            uvloop.run(rig.hammer(api.url, load, 4, 2))  # warm: pools, prepared plans, caches
            alone, statuses_alone, _ = uvloop.run(rig.hammer(api.url, load, 1, max(args.seconds / 2, 2)))
            cpu = rig.cpu_seconds(api)
            many, statuses, per_s = uvloop.run(rig.hammer(api.url, load, args.clients, args.seconds))
            cpu = rig.cpu_seconds(api) - cpu
            resident = rig.resident_mb(api)
        finally:
            rig.stop(api)
    if set(statuses) | set(statuses_alone) != {202}:
        raise SystemExit(f"not every submit was accepted: {statuses} {statuses_alone}")
    facts = {
        "submit_per_s": round(per_s),
        "pgbench_per_s": round(direct),
        "shared_per_s": round(lanes),
        "ratio": round(per_s / direct, 3),
        "p50_ms": rig.quantile_ms(alone, 0.5),
        "p99_ms": rig.quantile_ms(alone, 0.99),
        "p50_ms_16": rig.quantile_ms(many, 0.5),
        "p99_ms_16": rig.quantile_ms(many, 0.99),
        "api_cpu_us": round(cpu / len(many) * 1e6),
        "api_rss_mb": resident,
        "clients": args.clients,
    }
    rows = [
        (f"HTTP submits/s, one API core, {args.clients} clients", f"{per_s:,.0f}"),
        (f"pgbench on the same function, {args.clients} clients", f"{direct:,.0f}"),
        (f"the same as the API sends them: {SHARED} a statement, as many under way", f"{lanes:,.0f}"),
        ("ratio of HTTP to pgbench", f"{per_s / direct:.3f}"),
        ("p50 / p99 at 1 client", f"{facts['p50_ms']} / {facts['p99_ms']} ms"),
        (f"p50 / p99 at {args.clients} clients", f"{facts['p50_ms_16']} / {facts['p99_ms_16']} ms"),
    ]
    rows += [
        ("API processor time a submit", f"{facts['api_cpu_us']} µs"),
        ("API resident memory after it", f"{resident} MB"),
    ]
    rig.report("submit", rows, facts)


if __name__ == "__main__":
    main()
