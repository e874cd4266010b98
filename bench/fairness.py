"""One organization queues a hundred thousand jobs; how long another one's job waits to be started (MJ17)."""

import argparse
import asyncio
import time

import uvloop

from bench import lifecycle, rig
from limner.db.wake import CHANNEL

STARTED = """
SELECT extract(epoch FROM j.started_at - j.created_at)::float8 AS waited FROM limner.job j
 WHERE j.org_id = %s AND j.started_at IS NOT NULL ORDER BY j.id
"""


async def trickle(bench: rig.Rig, app: rig.BenchApp, model: dict, count: int, pause_s: float) -> list[float]:  # type: ignore[type-arg]
    """One job after another of the small organization, each announced as the API does; seconds from submit to start."""
    async with bench.database() as db:
        for _ in range(count):
            await lifecycle.submit_to(db, [app], model, 1)
            async with db.statement("limner_api") as conn:
                await conn.execute(f"NOTIFY {CHANNEL}", prepare=False)
            await asyncio.sleep(pause_s)
        await asyncio.sleep(1)
        async with db.tenant_tx(app.org_id) as tx:
            return [row["waited"] for row in await tx.all(STARTED, [app.org_id])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--cap", type=int, default=48, help="of the organization with the backlog; 0: none")
    parser.add_argument("--jobs", type=int, default=200, help="of the other organization")
    parser.add_argument("--provider-ms", type=int, default=100)
    args = parser.parse_args()
    with rig.rig() as bench:

        async def tenants() -> list[rig.BenchApp]:
            async with bench.database() as db:
                return await bench.tenants(db, 2, 1, 100)

        large, small = asyncio.run(tenants())
        models = {app.org_id: asyncio.run(lifecycle.sell(bench, app)) for app in (large, small)}
        with rig.superuser(bench) as conn:
            conn.execute(
                "UPDATE limner.queue_policy SET max_running = %s WHERE org_id = %s", [args.cap or None, large.org_id]
            )
        began = time.perf_counter()
        uvloop.run(lifecycle.submit(bench, [large], models, args.backlog))
        queued_s = time.perf_counter() - began
        with lifecycle.worker(bench, args.slots, args.provider_ms / 1000):
            time.sleep(2)
            waits = uvloop.run(trickle(bench, small, models, args.jobs, 0.15))
        with rig.superuser(bench) as conn:
            done = conn.execute(
                "SELECT count(*) FROM limner.job WHERE org_id = %s AND finished_at IS NOT NULL", [large.org_id]
            )
            worked = done.fetchone()
    p50, p95 = rig.quantile_ms(waits, 0.5), rig.quantile_ms(waits, 0.95)
    facts = {
        "start_p50_ms": p50,
        "start_p95_ms": p95,
        "start_max_ms": round(max(waits) * 1000, 1),
        "jobs": len(waits),
        "backlog": args.backlog,
        "backlog_worked": worked[0] if worked else 0,
        "slots": args.slots,
        "cap": args.cap,
    }
    rows = [
        (f"another's submit to start, p50 / p95, behind {args.backlog:,} jobs", f"{p50} / {p95} ms"),
        ("the longest of them", f"{facts['start_max_ms']} ms"),
        ("jobs of the backlog done meanwhile", f"{facts['backlog_worked']:,}"),
        ("the backlog was queued in", f"{queued_s:.0f} s"),
    ]
    rig.report("fairness", rows, facts)


if __name__ == "__main__":
    main()
