"""SIGTERM: a worker stops claiming, gives its runs back without counting them, and is gone in time."""

import os
import signal
import time

import psycopg
import pytest

from limner.db.pools import Database
from tests import acts
from tests.conftest import Tenant
from tests.faults.cluster import Cluster, charged_once, closed, eventually, leases, order


@pytest.mark.parametrize(("shutdown_s", "lease_s"), [(9.0, 1.0), pytest.param(30.0, 30.0, marks=pytest.mark.long)])
async def test_sigterm_gives_long_runs_back_and_another_worker_finishes_them(
    db: Database, tenant: Tenant, cluster: Cluster, superuser: psycopg.Connection, shutdown_s: float, lease_s: float
) -> None:
    leaving = cluster.worker(slow_s=600, LIMNER_SHUTDOWN_S=str(shutdown_s), LIMNER_LEASE_S=str(lease_s))
    job_ids = [await order(db, tenant) for _ in range(5)]
    await eventually(lambda: len(leases(superuser, tenant.org_id)) == 5)

    leaving.send(signal.SIGTERM)
    began = time.monotonic()
    late = await order(db, tenant)
    assert leaving.popen.wait(shutdown_s) == 0, leaving.output()
    took_s = time.monotonic() - began

    assert took_s < shutdown_s * 0.75, "well within the time it has"
    queued = superuser.execute(
        "SELECT lease_owner, runs, claimable_at <= clock_timestamp() FROM limner.job_queue WHERE org_id = %s",
        [tenant.org_id],
    ).fetchall()
    assert queued == [(None, 0, True)] * 6
    assert "run.abandoned" not in leaving.output()
    idle = cluster.worker()
    await eventually(lambda: closed(superuser, [*job_ids, late]), 20)
    runs = superuser.execute("SELECT DISTINCT runs FROM limner.job WHERE org_id = %s", [tenant.org_id]).fetchall()
    assert runs == [(1,)]
    charged_once(superuser, tenant.org_id, [*job_ids, late])
    assert await acts.books(db, tenant.org_id) == {}

    idle.send(signal.SIGTERM)
    began = time.monotonic()
    assert idle.popen.wait(10) == 0
    assert time.monotonic() - began < 4, "nothing to give back, nothing to wait for"
    print(f"left {took_s:.1f} s after SIGTERM of {shutdown_s:g} s")


@pytest.mark.long
async def test_a_worker_that_cannot_reach_its_database_leaves_in_time(
    db: Database, tenant: Tenant, cluster: Cluster, superuser: psycopg.Connection
) -> None:
    """The server stands still (a frozen machine): nothing answers, nothing fails, and the process ends all the same."""
    worker = cluster.worker(slow_s=600, LIMNER_SHUTDOWN_S="6")
    await order(db, tenant)
    await eventually(lambda: leases(superuser, tenant.org_id))
    backends = [
        row[0] for row in superuser.execute("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'limner\\_%'")
    ]
    try:
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        worker.send(signal.SIGTERM)
        began = time.monotonic()
        worker.popen.wait(12)
        took_s = time.monotonic() - began
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)

    assert took_s < 7
    cluster.worker()
    await eventually(lambda: not leases(superuser, tenant.org_id) or _all_closed(superuser, tenant), 20)


def _all_closed(conn: psycopg.Connection, tenant: Tenant) -> bool:
    return acts.count(conn, "SELECT count(*) FROM limner.job_queue WHERE org_id = %s", tenant.org_id) == 0
