"""MJ8: dead workers are noticed in seconds, at the real lease of thirty."""

import asyncio

import psycopg
import pytest

from limner.db.pools import Database
from tests import acts, tiers
from tests.conftest import Tenant
from tests.faults.cluster import Cluster, charged_once, closed, eventually, leases, order
from tests.tally import Tally

LEASE_S = "30"
WORKERS = 5
DEADEST_S = 45.0
P99_S = 35.0


@pytest.mark.parametrize("count", tiers.counts(long=20, soak=200))
async def test_mj8_leases_of_workers_killed_together_are_taken_again_in_time(
    db: Database, tenant: Tenant, cluster: Cluster, superuser: psycopg.Connection, count: int, tally: Tally
) -> None:
    job_ids = [await order(db, tenant) for _ in range(count)]
    few = {"LIMNER_WORKER_SLOTS": str(count // WORKERS), "LIMNER_LEASE_S": LEASE_S}
    doomed = [cluster.worker(slow_s=600, wait=False, **few) for _ in range(WORKERS)]  # type: ignore[arg-type]
    await eventually(lambda: len(leases(superuser, tenant.org_id)) == count, 60)
    assert len({pid for pid, _ in leases(superuser, tenant.org_id).values()}) == len(doomed)
    for _ in range(2):
        cluster.worker(slow_s=count / 10, LIMNER_LEASE_S=LEASE_S, LIMNER_WORKER_SLOTS=str(count))  # room for all
    await asyncio.sleep(11)  # each lease has been renewed once

    for worker in doomed:
        worker.popen.kill()
    killed_at = superuser.execute("SELECT clock_timestamp()").fetchone()
    assert killed_at is not None
    taken: dict[object, float] = {}

    def all_taken() -> bool:
        rows = superuser.execute(
            "SELECT job_id, extract(epoch FROM clock_timestamp() - %s)::float8 FROM limner.job_queue WHERE org_id = %s AND fence = 2",
            [killed_at[0], tenant.org_id],
        ).fetchall()
        for job_id, seconds in rows:
            taken.setdefault(job_id, seconds)
        return len(taken) == count

    await eventually(all_taken, DEADEST_S + 5)
    waited = sorted(taken.values())
    tally("MJ8", leases=count, lease_s=LEASE_S, taken_again_after_s=[round(waited[0], 1), round(waited[-1], 1)])

    assert waited[0] > 15, "nobody took a lease that had been renewed a moment ago"
    assert waited[int(count * 0.99) - 1] <= P99_S
    assert waited[-1] <= P99_S
    await eventually(lambda: closed(superuser, job_ids), 120 + 2 * count)
    charged_once(superuser, tenant.org_id, job_ids)
    assert await acts.books(db, tenant.org_id) == {}
