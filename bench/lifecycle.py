"""The whole life of no-op jobs: submitted by SQL, drained by one worker with start, hold, intent, post, usage and events."""

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import psycopg
import uvloop
from psycopg.conninfo import conninfo_to_dict

from bench import rig
from limner.db.pools import Address, Database, runtime_conninfo
from limner.db.wake import Herald
from limner.egress.destinations import Destinations
from limner.egress.untrusted import UntrustedDoor
from limner.events.relay import Relay
from limner.hub import catalog, executor, jobs
from limner.hub.imports import Imports
from limner.hub.loop import LoopSettings, WorkerLoop
from limner.hub.progress import News
from limner.hub.providers.base import CallClass, Output, ProviderCall, ProviderResult
from limner.kit import crypto, ids
from limner.kit.cpu import CpuPool
from limner.media.audio import AudioLimits, Recordings
from limner.media.sniffing import ImageLimits
from limner.media.store import ObjectStore
from limner.settings import Settings, load_root_key
from limner.telemetry import logs

MODEL = "bench/no-op"
SCHEMA = {"type": "object", "additionalProperties": False, "properties": {}}
BATCH = 32
OPEN = (
    "SELECT 1 AS one WHERE EXISTS (SELECT 1 FROM limner.job_queue WHERE phase = 'ready')"
    " OR EXISTS (SELECT 1 FROM limner.job_queue WHERE phase = 'leased')"
)
WORKER_ROLES = ("limner_dispatch", "limner_worker", "limner_audit", "limner_operator")


class NoOp:
    """A provider that does nothing, after `delay_s`."""

    name = "bench-no-op"
    call_class = CallClass.A

    def __init__(self, delay_s: float = 0) -> None:
        self._delay_s = delay_s

    async def run(self, call: ProviderCall) -> ProviderResult:  # noqa: ARG002
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        return ProviderResult((Output(0, "text", text="done"),))


async def sell(bench: rig.Rig, app: rig.BenchApp) -> UUID:
    """The model in this organization's own catalog, one credit a job."""
    async with bench.database() as db, db.tenant_tx(app.org_id, "limner_operator") as tx:
        facts = {"name": MODEL, "display_name": "No-op", "kind": "text", "input_schema": SCHEMA, "price_mc": 1000}
        model_id = await catalog.put_model(tx, facts)
        await catalog.put_provider(tx, {"name": NoOp.name, "display_name": "No-op", "adapter": NoOp.name})
        await catalog.put_route(tx, MODEL, NoOp.name, provider_model="no-op", priority=1, cost_micro_usd=0, config=None)
    return model_id


async def submit(bench: rig.Rig, apps: Sequence[rig.BenchApp], models: dict[UUID, UUID], count: int) -> float:
    """Submit that many jobs as the API does, two lanes of shared commits; seconds it took."""
    async with bench.database() as db:
        return await submit_to(db, apps, models, count)


async def submit_to(db: Database, apps: Sequence[rig.BenchApp], models: dict[UUID, UUID], count: int) -> float:
    """The same over pools that are open."""
    turns = itertools.cycle([(app, user) for user in apps[0].users for app in apps])
    requests = [
        (app.org_id, jobs.Submission(
            app_id=app.app_id, external_id=user, route="generate", model_id=models[app.org_id], model=MODEL, kind="text",
            unit_price_mc=1000, hold_mc=1000, priority=10, idempotency_key=None, request_hash=crypto.sha256(b"no-op"),
            input={}, wait_s=1, deadline_s=86400, max_runs=3,
        ))
        for app, user in itertools.islice(turns, count)
    ]  # fmt: skip
    batches = iter([requests[n : n + BATCH] for n in range(0, count, BATCH)])

    async def lane() -> None:
        for batch in batches:
            waiting = batch
            while waiting:  # what two lanes wanted at once goes again
                rows = [(org_id, ids.new(), request) for org_id, request in waiting]
                async with db.shared_single({org_id for org_id, _ in waiting}) as tx:
                    placed = await jobs.submit_many(tx, rows)
                waiting = [one for one, row in zip(waiting, rows, strict=True) if row[1] not in placed]

    began = time.perf_counter()
    await asyncio.gather(lane(), lane())
    return time.perf_counter() - began


async def drain(url: str, home: Path, slots: int, delay_s: float) -> None:
    """A worker's loop over a provider that takes `delay_s`, until stopped by SIGTERM."""
    settings = Settings(home=home, _env_file=None)  # type: ignore[call-arg]
    root = load_root_key(settings)
    logs.configure("info", process="worker")
    db = Database(Address(url), root, WORKER_ROLES, size=8)
    await db.open()
    pool = CpuPool(1, 2 << 30, 30.0)
    herald = Herald(db, "limner_dispatch")
    relay = Relay(db, herald)
    news = News(relay.wake, herald.tell)
    imports = Imports(
        UntrustedDoor(Destinations((), ())), pool, ImageLimits(1, 1, 1), Recordings(pool, AudioLimits(1, 1))
    )
    made = executor.resources(db, {NoOp.name: NoOp(delay_s)}, ObjectStore(None, home), pool, 3, 5.0, imports, news)
    loop = WorkerLoop(made, LoopSettings(slots=slots, lease_s=30.0, heartbeat_s=10.0, shutdown_s=10.0))
    asyncio.get_running_loop().add_signal_handler(15, loop.stop)
    aside = [asyncio.create_task(work) for work in (relay.run(), herald.run())]
    await loop.run()
    for task in aside:
        task.cancel()
    await db.close()


async def until_empty(bench: rig.Rig) -> None:
    async with bench.database() as db:
        while True:
            async with db.system_tx("limner_dispatch", "waits for an empty queue") as tx:
                if await tx.find(OPEN) is None:  # by its indexes: looking must not take the worker's time
                    return
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def worker(bench: rig.Rig, slots: int = 400, delay_s: float = 0) -> Iterator[None]:
    """A worker that is ready, in a process of its own."""
    path = bench.home / "worker.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.lifecycle", "--drain", bench.url, "--home", str(bench.home),
             "--slots", str(slots), "--delay", str(delay_s)],
            env=os.environ | {"PYTHONPATH": str(Path.cwd())}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        while "worker.ready" not in path.read_text():
            assert process.poll() is None, path.read_text()[-2000:]
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait(20)


def live(bench: rig.Rig, apps: Sequence[rig.BenchApp], models: dict[UUID, UUID], count: int) -> dict[str, float]:
    """Submit `count` jobs, then let one worker drain them: rates of either, and of both together."""
    submit_s = uvloop.run(submit(bench, apps, models, count))
    with worker(bench):
        began = time.perf_counter()
        asyncio.run(until_empty(bench))
        drain_s = time.perf_counter() - began
    return {
        "submit_per_s": count / submit_s,
        "drain_per_s": count / drain_s,
        "life_per_s": count / (submit_s + drain_s),
    }


def drained(bench: rig.Rig, count: int) -> float:
    """Jobs a second of one worker over the first `count` of whatever is queued."""
    with rig.superuser(bench) as conn, worker(bench):
        began, first = time.perf_counter(), _succeeded(conn)
        while (done := _succeeded(conn) - first) < count:
            time.sleep(0.05)
        return done / (time.perf_counter() - began)


def _succeeded(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT sum(jobs_succeeded)::bigint FROM limner.wallet").fetchone()
    assert row is not None
    return int(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--orgs", type=int, default=10)
    parser.add_argument("--apps", type=int, default=2)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--drain", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--slots", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--delay", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drain:
        uvloop.run(drain(args.drain, args.home, args.slots, args.delay))
        return
    with rig.rig() as bench:
        apps, direct = prepare(bench, args)
        models = {app.org_id: asyncio.run(sell(bench, app)) for app in apps}
        live(bench, apps, models, 1000)  # warm: caches, prepared plans
        rates = live(bench, apps, models, args.jobs)
    facts = {name: round(rate) for name, rate in rates.items()} | {"pgbench_per_s": round(direct)}
    facts |= {"ratio": round(rates["life_per_s"] / direct, 3), "jobs": args.jobs}  # type: ignore[dict-item]
    rig.report("lifecycle", [
        ("jobs/s, whole life: submitted by SQL, then drained by one worker", f"{rates['life_per_s']:,.0f}"),
        ("submitted a second (two lanes of shared commits)", f"{rates['submit_per_s']:,.0f}"),
        ("drained a second (claim, start, intent, finish)", f"{rates['drain_per_s']:,.0f}"),
        ("pgbench, one submit a commit, 16 clients", f"{direct:,.0f}"),
        ("ratio of the whole life to it", f"{facts['ratio']}"),
    ], facts)  # fmt: skip


def prepare(bench: rig.Rig, args: argparse.Namespace) -> tuple[list[rig.BenchApp], float]:
    """The tenants, and what pgbench reaches with one submit a commit."""
    from bench import submit as submit_bench  # noqa: PLC0415  (either bench runs alone)

    apps, script, _ = asyncio.run(submit_bench.prepare(bench, args))
    info = conninfo_to_dict(runtime_conninfo(bench.url, "limner_api", bench.root))
    direct = rig.pgbench(
        bench.embedded, {k: str(info[k]) for k in ("host", "user", "password", "dbname")}, script, 16, 3
    )
    with rig.superuser(bench) as conn:  # those jobs are nobody's here: the queue is this bench's own
        conn.execute("UPDATE limner.job_queue SET phase = 'deferred', claimable_at = clock_timestamp() + interval '1 day',"
                     " deadline_at = clock_timestamp() + interval '2 days'")  # fmt: skip
    return apps, direct


if __name__ == "__main__":
    main()
