"""The same work on a database that has grown: a million jobs done, ten million transfers, a hundred thousand queued.

The rows are planted with books that add up, so that `limner invariants` can be timed on them.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import uvloop

from bench import lifecycle, rig

ID = "(lpad(to_hex({prefix} + n), 12, '0') || '7' || substr(md5({salt}), 1, 19))::uuid"
WALLETS = "SELECT w.org_id, w.id, u.app_id, row_number() OVER (ORDER BY w.org_id, w.id) AS w, w.version AS v0, w.available_mc AS a0" \
          " FROM limner.wallet w JOIN limner.end_user u ON u.org_id = w.org_id AND u.id = w.id"  # fmt: skip
OLD = "began - (lasts - n) * interval '1 second'"
CHANGES = 10_000
"""Of the queue's jobs, how many are submitted in the minute whose check is timed."""


def plant(conn: psycopg.Connection, jobs: int, transfers: int) -> None:
    """`jobs` done in the past, a post and a hold each, and grants of one credit until there are `transfers`.

    Row after row in the order of time, as they would have come: every index grows at its end, and is not read back from the disk.
    """
    conn.execute(f"CREATE TEMP TABLE base AS {WALLETS}")
    row = conn.execute("SELECT count(*) FROM base").fetchone()
    assert row is not None
    per_wallet, grants = jobs // row[0], (transfers - 2 * jobs) // row[0]
    conn.execute("ALTER TABLE base ADD began timestamptz, ADD lasts int")
    conn.execute("UPDATE base SET began = clock_timestamp() - interval '1 day', lasts = %s", [grants + per_wallet])
    conn.execute("ANALYZE base")
    _grants(conn, grants)
    _jobs(conn, per_wallet, grants)
    conn.execute(f"""
        UPDATE limner.wallet x SET version = b.v0 + {grants} + 2 * {per_wallet},
               available_mc = b.a0 + ({grants} - {per_wallet}) * 1000::bigint,
               jobs_submitted = {per_wallet}, jobs_succeeded = {per_wallet}
          FROM base b WHERE x.org_id = b.org_id AND x.id = b.id""")
    conn.execute("VACUUM ANALYZE limner.transfer, limner.job, limner.event, limner.usage_record, limner.wallet")
    conn.execute("CHECKPOINT")


def _each(first: int, last: int) -> str:
    """Every wallet at each of the seconds: the seconds outside, so that rows come in the order of time."""
    return f"generate_series({first}, {last}) n CROSS JOIN LATERAL (SELECT * FROM base WHERE n > 0 OFFSET 0) b"


def _grants(conn: psycopg.Connection, grants: int) -> None:
    conn.execute(f"""
        INSERT INTO limner.transfer (org_id, id, kind, debit_book, credit_wallet, credit_version, credit_available_mc, amount_mc, reason,
                                     created_at)
        SELECT org_id, {ID.format(prefix=1_000_000, salt="'g' || w || '-' || n")}, 'grant', 'issuance', id, v0 + n, a0 + n * 1000, 1000,
               'planted', {OLD} FROM {_each(1, grants)}""")


def _jobs(conn: psycopg.Connection, per_wallet: int, grants: int) -> None:
    """After the grants: each job with its hold and post, terminal event and usage."""
    job = ID.format(prefix=1_000_000, salt="'j' || w || '-' || n")
    post = ID.format(prefix=1_000_000, salt="'p' || w || '-' || n")
    event = ID.format(prefix=1_000_000, salt="'e' || w || '-' || n")
    seconds = _each(grants + 1, grants + per_wallet)
    nth = f"(n - {grants})"
    conn.execute(f"""
        INSERT INTO limner.job (org_id, id, app_id, end_user_id, principal_id, wallet_id, model_id, model, kind, state, priority, route,
                                request_hash, input, outputs, unit_price_mc, price_hold_mc, price_final_mc, wait_s, runs, provider_used,
                                finished_fence, created_at, started_at, finished_at)
        SELECT org_id, {job}, app_id, id, id, id, id, 'bench/no-op', 'text', 'succeeded', 10, 'generate', decode(repeat('00', 32), 'hex'),
               '{{}}', '[]', 1000, 1000, 1000, 1, 1, 'bench-no-op', 1, {OLD}, {OLD}, {OLD} FROM {seconds}""")
    conn.execute(f"""
        INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc,
                                     hold_id, job_id, created_at)
        SELECT org_id, CASE k WHEN 1 THEN {job} ELSE {post} END, CASE k WHEN 1 THEN 'hold' ELSE 'post' END, id,
               v0 + {grants} + 2 * {nth} + k - 2, a0 + {grants} * 1000 - {nth} * 1000, 'revenue', 1000,
               CASE k WHEN 2 THEN {job} END, {job}, {OLD} FROM {seconds}, generate_series(1, 2) k""")
    conn.execute(f"""
        INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload, created_at)
        SELECT org_id, {event}, app_id, 'job.completed', {job}, '{{}}', {OLD} FROM {seconds}""")
    conn.execute(f"""
        INSERT INTO limner.usage_record (org_id, job_id, seq, app_id, end_user_id, model, provider, kind, quantity, unit, price_mc,
                                         created_at)
        SELECT org_id, {job}, 1, app_id, id, 'bench/no-op', 'bench-no-op', 'text', 1, 'text', 1000, {OLD} FROM {seconds}""")


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def check(conn: psycopg.Connection) -> None:
    """The whole book; a violation ends the bench: its rows would prove nothing."""
    for invariant, violations, example in conn.execute("SELECT * FROM limner.check_invariants(NULL)").fetchall():
        if violations:
            raise SystemExit(f"{invariant}: {violations}, for example {example}")


def check_changes(conn: psycopg.Connection, since: Any) -> None:
    """What the worker's duty asks each minute."""
    found = conn.execute("SELECT violations, example FROM limner.check_changes(%s)", since).fetchone()
    if found is None or found[0]:
        raise SystemExit(f"among what changed: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1: the sizes above")
    parser.add_argument("--jobs", type=int, default=8_000, help="of each measurement")
    parser.add_argument("--orgs", type=int, default=10)
    parser.add_argument("--apps", type=int, default=2)
    parser.add_argument("--users", type=int, default=50)
    args = parser.parse_args()
    done, transfers, queued = (int(args.scale * size) for size in (1_000_000, 10_000_000, 100_000))
    changes = min(queued, CHANGES)
    with rig.rig() as bench:
        apps, direct = lifecycle.prepare(bench, args)
        models: dict[UUID, UUID] = {app.org_id: asyncio.run(lifecycle.sell(bench, app)) for app in apps}
        lifecycle.live(bench, apps, models, 1000)  # warm
        empty = lifecycle.live(bench, apps, models, args.jobs)
        with rig.superuser(bench) as conn:
            plant_s = timed(lambda: plant(conn, done, transfers))
            whole_s = timed(lambda: check(conn))
            submit_s = timed(lambda: uvloop.run(lifecycle.submit(bench, apps, models, queued - changes)))
            since = conn.execute("SELECT clock_timestamp()").fetchone()
            submit_s += timed(lambda: uvloop.run(lifecycle.submit(bench, apps, models, changes)))
            changed_s = timed(lambda: check_changes(conn, since))
        submit_per_s = queued / submit_s
        drain_per_s = lifecycle.drained(bench, args.jobs)
    submit_ratio = empty["submit_per_s"] / submit_per_s
    drain_ratio = empty["drain_per_s"] / drain_per_s
    rows = [
        ("submits a second, empty / grown", f"{empty['submit_per_s']:,.0f} / {submit_per_s:,.0f}"),
        ("grown is: jobs done, transfers, queued", f"{done:,}, {transfers:,}, {queued:,}"),
        ("drained a second, empty / grown", f"{empty['drain_per_s']:,.0f} / {drain_per_s:,.0f}"),
        ("times as long: a submit, a drained job", f"{submit_ratio:.2f}, {drain_ratio:.2f}"),
        ("limner invariants, the whole book", f"{whole_s:.1f} s"),
        (f"the minute's check of what changed ({changes:,} submits)", f"{changed_s * 1000:.0f} ms"),
        ("pgbench, one submit a commit, empty", f"{direct:,.0f}"),
        ("planting took", f"{plant_s:.0f} s"),
    ]  # fmt: skip
    rig.report("growth", rows, {
        "submit_per_s": round(submit_per_s), "drain_per_s": round(drain_per_s), "submit_slower": round(submit_ratio, 3),
        "drain_slower": round(drain_ratio, 3), "invariants_s": round(whole_s, 1), "changes_ms": round(changed_s * 1000),
        "jobs_done": done, "transfers": transfers, "queued": queued, "pgbench_per_s": round(direct),
    })  # fmt: skip


if __name__ == "__main__":
    main()
