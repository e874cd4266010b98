"""A steady load while one transaction stays open for minutes: how long claims take, and what becomes of the queue's dead rows (MJ18).

What an open transaction might still see is kept for it: meanwhile every claim walks past the rows that died since.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import uvloop

from bench import lifecycle, rig
from limner.db.pools import Database, DatabaseUnavailable
from limner.db.wake import Waker
from limner.hub import jobs
from limner.hub.loop import NEAR_S, WorkerLoop
from limner.hub.runs import Lease
from limner.kit import crypto, ids

SAMPLE_S = 1.0
PHASES = ("before", "held", "after")
DEAD = """
SELECT s.n_dead_tup AS dead, s.n_tup_ins + s.n_tup_upd AS written, pg_total_relation_size(s.relid)::bigint AS bytes
  FROM pg_stat_user_tables s WHERE s.schemaname = 'limner' AND s.relname = 'job_queue'
"""
PROBE = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM limner.claim_jobs('probe', 64, 1, NULL, {NEAR_S}, %s)"
OLD = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'idle in transaction' AND backend_xmin IS NOT NULL)"


@dataclass(frozen=True)
class Plan:
    """Jobs a second for so long; after a quarter of the rest, a transaction is open for `held_s`."""

    seconds: float
    held_s: float
    rate: float
    orgs: int = 10
    apps: int = 2
    users: int = 50

    @property
    def opens_s(self) -> float:
        return (self.seconds - self.held_s) / 4


@dataclass
class Seen:
    """What was seen of each phase."""

    submits_s: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    claims_s: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    dead: dict[str, list[int]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    bytes: dict[str, int] = field(default_factory=dict)
    pages: dict[str, int] = field(default_factory=dict)
    """That a claim reads at the end of the phase: the same on a machine that is busy with other things."""
    ended_at: dict[str, float] = field(default_factory=dict)
    """By the wall clock, which the worker's process shares."""
    phase: str = PHASES[0]
    written: int = 0
    submitted: int = 0
    refused: int = 0
    held_to_the_end: bool = False


def measure(bench: rig.Rig, plan: Plan) -> dict[str, Any]:
    """The figures of one run over a database of its own. Raises SystemExit when the books do not add up."""

    async def tenants() -> list[rig.BenchApp]:
        async with bench.database() as db:
            return await bench.tenants(db, plan.orgs, plan.apps, plan.users)

    apps = asyncio.run(tenants())
    models = {app.org_id: asyncio.run(lifecycle.sell(bench, app)) for app in apps}
    seen = Seen()
    with _worker(bench) as notes:
        uvloop.run(_live(bench, plan, seen, apps, models))
        uvloop.run(lifecycle.until_empty(bench))
    _sort(notes, seen)
    return _facts(bench, plan, seen)


async def _live(bench: rig.Rig, plan: Plan, seen: Seen, apps: list[rig.BenchApp], models: dict[UUID, UUID]) -> None:
    async with bench.database() as db, asyncio.TaskGroup() as group:
        waker = Waker(db, "limner_api")
        aside = [group.create_task(waker.run()), group.create_task(_sample(bench, seen))]
        loading = group.create_task(_load(db, waker, plan, seen, apps, models))
        await asyncio.sleep(plan.opens_s)
        async with _open_transaction(bench, seen):
            await asyncio.sleep(plan.held_s)
        await loading
        await asyncio.sleep(2 * SAMPLE_S)
        async with await _look(bench) as other:
            await _probe(other, seen)
        seen.ended_at["after"] = time.time()
        for task in aside:
            task.cancel()


async def _load(
    db: Database, waker: Waker, plan: Plan, seen: Seen, apps: list[rig.BenchApp], models: dict[UUID, UUID]
) -> None:
    """Customers who come whether or not those before them were served."""
    turns = itertools.cycle([(app, user) for user in apps[0].users for app in apps])

    async def submit(app: rig.BenchApp, user: str) -> None:
        request = jobs.Submission(
            app_id=app.app_id, external_id=user, route="generate", model_id=models[app.org_id], model=lifecycle.MODEL,
            kind="text", unit_price_mc=1000, hold_mc=1000, priority=10, idempotency_key=None,
            request_hash=crypto.sha256(b"no-op"), input={}, wait_s=1, deadline_s=86400, max_runs=3,
        )  # fmt: skip
        phase, came = seen.phase, time.perf_counter()
        while True:
            try:
                async with db.tenant_single(app.org_id) as tx:
                    await jobs.submit(tx, ids.new(), request)
                break
            except DatabaseUnavailable:  # as an API's customer, who hears 503
                seen.refused += 1
        waker.wake()
        seen.submits_s[phase].append(time.perf_counter() - came)
        seen.submitted += 1

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, (app, user) in zip(range(round(plan.rate * plan.seconds)), turns, strict=False):
            await asyncio.sleep(max(began + number / plan.rate - time.monotonic(), 0))
            group.create_task(submit(app, user))


@contextlib.asynccontextmanager
async def _open_transaction(bench: rig.Rig, seen: Seen) -> AsyncIterator[None]:
    """Of a session that may keep one open, as a backup does: limner's own roles are cut off after ten seconds."""
    async with await psycopg.AsyncConnection.connect(_superuser(bench)) as holder, await _look(bench) as other:
        await holder.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await holder.execute("SELECT count(*) FROM limner.job_queue")
        await _probe(other, seen)
        seen.ended_at["before"], seen.phase = time.time(), "held"
        yield
        row = await (await other.execute(OLD, [holder.info.backend_pid])).fetchone()
        seen.held_to_the_end = bool(row and row[0])
        await _probe(other, seen)
        await holder.rollback()
        seen.ended_at["held"], seen.phase = time.time(), "after"


async def _probe(conn: psycopg.AsyncConnection[Any], seen: Seen) -> None:
    """A claim that is taken back, as most are while claims are slow."""
    async with conn.transaction(force_rollback=True):
        since = await (await conn.execute("SELECT limner.ready_since()")).fetchone()
        row = await (await conn.execute(PROBE, since)).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    seen.pages[seen.phase] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def _sample(bench: rig.Rig, seen: Seen) -> None:
    async with await _look(bench) as conn:
        while True:
            row = await (await conn.execute(DEAD)).fetchone()
            assert row is not None
            seen.dead[seen.phase].append(row[0])
            seen.written, seen.bytes[seen.phase] = row[1], row[2]
            await asyncio.sleep(SAMPLE_S)


async def _look(bench: rig.Rig) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(_superuser(bench), autocommit=True)


def _superuser(bench: rig.Rig) -> str:
    return bench.embedded.superuser_conninfo().replace("dbname=postgres", "dbname=limner")


@contextlib.contextmanager
def _worker(bench: rig.Rig) -> Iterator[Path]:
    """A worker in a process of its own that notes how long each of its claims took."""
    log, notes = bench.home / "queue-age-worker.log", bench.home / "claims"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.queue_age", "--drain", bench.url, "--home", str(bench.home)],
            env=os.environ | {"PYTHONPATH": str(Path.cwd())}, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        while "worker.ready" not in log.read_text():
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.01)
        yield notes
        assert process.poll() is None, log.read_text()[-2000:]
    finally:
        process.terminate()
        process.wait(20)


def _drain(url: str, home: Path) -> None:
    """The worker: each claim with its way to the database, its commit and what this process had to do meanwhile."""
    real = WorkerLoop._claim
    with (home / "claims").open("w") as notes:

        async def timed(loop: WorkerLoop, room: int) -> list[Lease]:
            began = time.perf_counter()
            leases = await real(loop, room)
            notes.write(f"{time.time():.3f} {time.perf_counter() - began:.6f}\n")
            return leases

        bent: Any = WorkerLoop
        bent._claim = timed
        uvloop.run(lifecycle.drain(url, home, 64, 0))


def _sort(notes: Path, seen: Seen) -> None:
    for line in notes.read_text().splitlines():
        at, took = map(float, line.split())
        phase = next((phase for phase in PHASES if at <= seen.ended_at[phase]), None)
        if phase is not None:
            seen.claims_s[phase].append(took)


def _facts(bench: rig.Rig, plan: Plan, seen: Seen) -> dict[str, Any]:
    with rig.superuser(bench) as conn:
        broken = conn.execute("SELECT * FROM limner.check_invariants(NULL) AS x (name, violations, example)"
                              " WHERE violations > 0").fetchall()  # fmt: skip
        if broken:
            raise SystemExit(f"the books do not add up: {broken}")
        row = conn.execute(
            "SELECT count(*), count(*) FILTER (WHERE state = 'succeeded' AND runs = 1) FROM limner.job"
        ).fetchone()
        posted = conn.execute("SELECT count(*) FROM limner.transfer WHERE kind = 'post'").fetchone()
    assert row is not None
    assert posted is not None
    facts: dict[str, Any] = {
        "rate": plan.rate, "seconds": plan.seconds, "held_s": plan.held_s, "held_to_the_end": seen.held_to_the_end,
        "submitted": seen.submitted, "refused": seen.refused, "jobs": row[0], "succeeded_at_once": row[1], "posts": posted[0],
        "rows_written_per_job": round(seen.written / max(seen.submitted, 1), 2),
    }  # fmt: skip
    for phase in PHASES:
        facts[phase] = {
            "claims": len(seen.claims_s[phase]),
            "claim_p50_ms": rig.quantile_ms(seen.claims_s[phase], 0.5),
            "claim_p99_ms": rig.quantile_ms(seen.claims_s[phase], 0.99),
            "claim_pages": seen.pages[phase],
            "submit_p50_ms": rig.quantile_ms(seen.submits_s[phase], 0.5),
            "submit_p99_ms": rig.quantile_ms(seen.submits_s[phase], 0.99),
            "dead_most": max(seen.dead[phase], default=0),
            "dead_at_its_end": seen.dead[phase][-1] if seen.dead[phase] else 0,
            "megabytes": round(seen.bytes.get(phase, 0) / 2**20, 1),
        }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--held", type=float, default=600, help="seconds for which the transaction stays open")
    parser.add_argument("--rate", type=float, default=50, help="jobs a second")
    parser.add_argument("--orgs", type=int, default=10)
    parser.add_argument("--apps", type=int, default=2)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--drain", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drain:
        _drain(args.drain, args.home)
        return
    with rig.rig() as bench:
        facts = measure(bench, Plan(args.seconds, args.held, args.rate, args.orgs, args.apps, args.users))
    by_phase = [facts[phase] for phase in PHASES]

    def row(what: str, name: str) -> tuple[str, str]:
        return what, " / ".join(f"{figures[name]:,}" for figures in by_phase)

    rig.report("queue_age", [
        ("jobs a second for so long, with a transaction open for", f"{args.rate:g}/s, {args.seconds:g} s, {args.held:g} s"),
        ("jobs submitted / done at the first run", f"{facts['submitted']:,} / {facts['succeeded_at_once']:,}"),
        ("submits that found no connection for four seconds", f"{facts['refused']:,}"),
        ("each of the following: before / while it is open / after", ""),
        row("claims", "claims"),
        row("a claim, p50, ms", "claim_p50_ms"),
        row("a claim, p99, ms", "claim_p99_ms"),
        row("pages a claim reads, at the end of it", "claim_pages"),
        row("a submit, p99, ms", "submit_p99_ms"),
        row("dead rows of the queue, the most", "dead_most"),
        row("dead rows of the queue, at the end of it", "dead_at_its_end"),
        row("the queue with its indexes, MB", "megabytes"),
    ], facts)  # fmt: skip


if __name__ == "__main__":
    main()
