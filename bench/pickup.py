"""Pick-up: from a submit's statement to its run's start on an idle system, by the database's clock."""

import argparse
import asyncio
import time

import orjson

from bench import rig
from tests.running import Process

BODY = orjson.dumps({"model": "local/canvas", "input": {"prompt": "dot", "size": 512, "style": "gradient"}})
QUERY = """
SELECT extract(epoch FROM j.started_at - j.created_at)::float8 AS waited, extract(epoch FROM j.finished_at - j.created_at)::float8 AS took
  FROM limner.job j WHERE j.org_id = %s AND j.started_at IS NOT NULL ORDER BY j.id
"""


async def submit_one_by_one(bench: rig.Rig, url: str, jobs: int) -> list[tuple[float, float]]:
    """(seconds waited, seconds in all) of jobs that each meet an idle worker."""
    async with bench.database() as db:
        [app] = await bench.tenants(db, 1, 1, 1)
        request = rig.post(url, "/api/v1/generate", app.key, "user-0", BODY)
        for _ in range(jobs):
            await rig.hammer(url, iter([request]), 1, 0)
            while True:
                async with db.system_tx("limner_dispatch", "waits for an empty queue") as tx:
                    if await tx.find("SELECT 1 AS one FROM limner.job_queue LIMIT 1") is None:
                        break
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.05)
        async with db.tenant_tx(app.org_id) as tx:
            rows = await tx.all(QUERY, [app.org_id])
    return [(row["waited"], row["took"]) for row in rows]


def idle_mb(process: Process) -> int:
    """Resident memory once start-up is over."""
    time.sleep(2)
    return rig.resident_mb(process)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    args = parser.parse_args()
    with rig.rig() as bench:
        api = bench.api(core=None)
        worker = bench.worker()
        try:
            idle = {"api": idle_mb(api), "worker": idle_mb(worker)}
            measured = asyncio.run(submit_one_by_one(bench, api.url, args.jobs))
        finally:
            rig.stop(worker)
            rig.stop(api)
    waited = [seconds for seconds, _ in measured][3:]  # the first ones start the worker's processes
    facts = {
        "pickup_p50_ms": rig.quantile_ms(waited, 0.5),
        "pickup_p99_ms": rig.quantile_ms(waited, 0.99),
        "job_p50_ms": rig.quantile_ms([took for _, took in measured][3:], 0.5),
        "jobs": len(waited),
        "api_idle_mb": idle["api"],
        "worker_idle_mb": idle["worker"],
    }
    rows = [
        ("pick-up p50 / p99", f"{facts['pickup_p50_ms']} / {facts['pickup_p99_ms']} ms"),
        ("whole life of a small picture, p50", f"{facts['job_p50_ms']} ms"),
        ("resident memory, idle: API / worker", f"{idle['api']} / {idle['worker']} MB"),
    ]
    rig.report("pickup", rows, facts)


if __name__ == "__main__":
    main()
