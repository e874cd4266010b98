"""Usage of a million records, ten organizations and ninety days: how fast it is summed up, and how fast it is told over HTTP.

The records, and the places of their jobs in the log, are planted in the order of time. Then a worker's duty sums them up, all but the last
ten seconds of a busy organization, and keys ask for a month of it, one request after the other and four at a time.
"""

import argparse
import asyncio
import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import uvloop

from bench import rig
from limner.hub.usage_rolling import UsageRolling

ID = "(lpad(to_hex({prefix} + n), 12, '0') || '7' || substr(md5('{salt}' || b.o || '-' || n), 1, 19))::uuid"
JOB, BEGUN, ENDED = (ID.format(prefix=1_700_000_000_000, salt=salt) for salt in ("j", "s", "e"))
MODELS, PROVIDERS = 8, 3
DAYS = 90
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BASE = """
CREATE TEMP TABLE base AS
SELECT o.org_id, row_number() OVER (ORDER BY o.org_id) AS o, a.id AS app_id,
       (SELECT array_agg(e.id ORDER BY e.id) FROM limner.end_user e WHERE e.org_id = o.org_id) AS users
  FROM limner.organization o JOIN limner.app a ON a.org_id = o.org_id WHERE a.slug = 'app-0'
"""
RAW = """
SELECT (u.created_at AT TIME ZONE 'UTC')::date AS day, u.model, count(*) FILTER (WHERE u.seq = 1), sum(u.price_mc)
  FROM limner.usage_record u WHERE u.org_id = %s AND u.created_at >= now() - interval '30 days' GROUP BY 1, 2
"""


def plant(conn: psycopg.Connection, first: int, last: int, per_day: float) -> None:
    """Jobs number `first` to `last` of each organization, two records each, with the events of their begin and end in their places."""
    conn.execute("DROP TABLE IF EXISTS base")
    conn.execute(BASE)
    each = f"generate_series({first}, {last}) n CROSS JOIN LATERAL (SELECT * FROM base WHERE n > 0 OFFSET 0) b"
    at = f"least(now() - interval '{DAYS} days' + n * interval '{86_400 / per_day} seconds', now())"
    user = "b.users[1 + (hashint8(n * 7 + b.o)::bigint & 2147483647) % cardinality(b.users)]"
    model, provider = f"'bench/model-' || (hashint8(n)::bigint & 1023) % {MODELS}", f"'provider-' || n % {PROVIDERS}"
    conn.execute(f"""
        INSERT INTO limner.usage_record (org_id, job_id, seq, app_id, end_user_id, model, provider, kind, quantity, unit, price_mc,
                                         cost_micro_usd, created_at)
        SELECT b.org_id, {JOB}, k, b.app_id, {user}, {model}, {provider}, CASE k WHEN 1 THEN 'input_tokens' ELSE 'output_tokens' END,
               100 + n % 900, 'token', CASE k WHEN 1 THEN 10 + n % 90 ELSE 0 END, CASE k WHEN 1 THEN n % 1000 END, {at}
          FROM {each}, generate_series(1, 2) k""")
    for place, kind, event in ((1, "job.started", BEGUN), (0, "job.completed", ENDED)):
        conn.execute(f"""
            INSERT INTO limner.event (org_id, id, xid, app_id, type, subject_id, payload, created_at)
            SELECT b.org_id, {event}, '1', b.app_id, '{kind}', {JOB}, '{{}}', {at} FROM {each}""")
        conn.execute(f"""
            INSERT INTO limner.event_order (org_id, seq, event_id, app_id, subject_id)
            SELECT b.org_id, 2 * n - {place}, {event}, b.app_id, {JOB} FROM {each}""")
    conn.execute("DROP TABLE base")
    conn.execute("UPDATE limner.event_relay SET xid = '1', id = 'ffffffff-ffff-ffff-ffff-ffffffffffff'")


def get(url: str, path: str, key: str) -> bytes:
    """A prepared request."""
    return f"GET {path} HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\nX-API-Key: {key}\r\n\r\n".encode()


def questions() -> dict[str, str]:
    """What is asked: (words, query)."""
    today = datetime.now(UTC).date()
    month = f"from={today - timedelta(days=29)}&to={today}"
    all_of_it = f"from={today - timedelta(days=DAYS)}&to={today}"
    return {
        "a month by day and model": f"{month}&group_by=day,model&limit=1000",
        "a month by app": f"{month}&group_by=app",
        "a month by user": f"{month}&group_by=user&limit=1000",
        "a month by model and provider": f"{month}&group_by=model,provider",
        "90 days by day, model, provider, kind": f"{all_of_it}&group_by=day,model,provider,kind&limit=1000",
    }


async def ask(url: str, apps: list[rig.BenchApp], query: str, clients: int, seconds: float) -> list[float]:
    requests: Iterator[bytes] = itertools.cycle([get(url, f"/api/v1/usage?{query}", app.key) for app in apps])
    latencies, statuses, _ = await rig.hammer(url, requests, clients, seconds)
    if set(statuses) != {200}:
        raise SystemExit(f"{query}: {statuses}")
    return latencies


async def roll(bench: rig.Rig) -> float:
    """Seconds to sum up what is not summed up yet."""
    async with bench.database() as db:
        began = time.perf_counter()
        await UsageRolling(db).roll(EPOCH)
        return time.perf_counter() - began


async def tenants(bench: rig.Rig, orgs: int, users: int) -> list[rig.BenchApp]:
    async with bench.database() as db:
        return await bench.tenants(db, orgs, 1, users)


def sums(conn: psycopg.Connection) -> tuple[int, int]:
    """Rows of both sums; ends the bench where invariant I15 is broken: its figures would prove nothing."""
    broken = conn.execute("SELECT violations, example FROM limner.check_usage(NULL)").fetchone()
    if broken is None or broken[0]:
        raise SystemExit(f"the sums are wrong: {broken}")
    row = conn.execute(
        "SELECT (SELECT count(*) FROM limner.usage_day), (SELECT count(*) FROM limner.usage_user_day)"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def told(bench: rig.Rig, apps: list[rig.BenchApp], seconds: float) -> dict[str, dict[str, float]]:
    """p50 and p95 of each question, alone and four at a time."""
    api = bench.api()
    rig.pin_others(bench.embedded, 1)
    found: dict[str, dict[str, float]] = {}
    try:
        for words, query in questions().items():
            uvloop.run(ask(api.url, apps, query, 1, 1.0))  # warm
            found[words] = {}
            for clients in (1, 4):
                latencies = uvloop.run(ask(api.url, apps, query, clients, seconds))
                found[words] |= {
                    f"p50_{clients}": rig.quantile_ms(latencies, 0.5),
                    f"p95_{clients}": rig.quantile_ms(latencies, 0.95),
                }
    finally:
        rig.stop(api)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--orgs", type=int, default=10)
    parser.add_argument("--users", type=int, default=500, help="of each organization")
    parser.add_argument(
        "--tail", type=int, default=1000, help="jobs of each organization that are not summed up when it is asked"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each question")
    args = parser.parse_args()
    jobs = args.records // 2 // args.orgs
    with rig.rig() as bench:
        apps = asyncio.run(tenants(bench, args.orgs, args.users))
        with rig.superuser(bench) as conn:
            plant(conn, 1, jobs, jobs / DAYS)
            conn.execute("VACUUM ANALYZE limner.usage_record, limner.event, limner.event_order")
            roll_s = asyncio.run(roll(bench))
            plant(conn, jobs + 1, jobs + args.tail, jobs / DAYS)
            day_rows, user_rows = sums(conn)
            conn.execute("VACUUM ANALYZE limner.usage_day, limner.usage_user_day")
            check_s = timed(lambda: sums(conn))
            raw_s = min(timed(lambda: conn.execute(RAW, [apps[0].org_id]).fetchall()) for _ in range(5))
        found = told(bench, apps, args.seconds)
    report(args, roll_s, check_s, raw_s, (day_rows, user_rows), found)


def timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(
    args: argparse.Namespace, roll_s: float, check_s: float, raw_s: float, rows: tuple[int, int],
    found: dict[str, dict[str, float]],
) -> None:  # fmt: skip
    told_rows = [
        (f"{words}, p50 / p95, one client", f"{q['p50_1']:.1f} / {q['p95_1']:.1f} ms") for words, q in found.items()
    ]
    told_rows += [
        (f"{words}, p50 / p95, four clients", f"{q['p50_4']:.1f} / {q['p95_4']:.1f} ms") for words, q in found.items()
    ]
    worst = max(q["p95_1"] for q in found.values())
    shown = [
        ("records, organizations, days", f"{args.records:,}, {args.orgs}, {DAYS}"),
        ("summed up, records a second", f"{args.records / roll_s:,.0f}"),
        ("rows of the sums by day / by user and day", f"{rows[0]:,} / {rows[1]:,}"),
        ("not summed up while it is asked, jobs of each organization", f"{args.tail:,}"),
        *told_rows,
        ("a month by day and model from the records themselves, in SQL", f"{raw_s * 1000:.0f} ms"),
        ("invariant I15 over all of it", f"{check_s:.1f} s"),
    ]  # fmt: skip
    rig.report("usage", shown, {
        "records": args.records, "rolled_per_s": round(args.records / roll_s), "p95_ms": worst, "raw_ms": round(raw_s * 1000),
        "check_s": round(check_s, 1), "questions": found,
    })  # fmt: skip


if __name__ == "__main__":
    main()
