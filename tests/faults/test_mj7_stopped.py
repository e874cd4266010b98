"""MJ7: a worker that stood still past its lease writes nothing when it wakes: another has done its jobs."""

import asyncio
import hashlib
import random
import signal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.media.store import ObjectStore
from tests import acts, tiers
from tests.conftest import MakeTenant
from tests.faults.cluster import Cluster, charged_once, closed, eventually, leases, order
from tests.running import PATIENCE_S, Process
from tests.tally import Tally

RECORDS = ("job", "transfer", "usage_record", "event", "provider_call")


@pytest.mark.parametrize("rounds", tiers.counts(5, 50, full=500))
async def test_mj7_a_stopped_worker_finds_its_jobs_done_and_changes_nothing(
    db: Database, make_tenant: MakeTenant, cluster: Cluster, superuser: psycopg.Connection, rounds: int,
    tally: Tally,
) -> None:  # fmt: skip
    """It wakes when the other has finished, or (every other round) while the other is at work on the same jobs."""
    tenant = await make_tenant(credits=rounds * 9)
    workers = [cluster.worker(slow_s=0.3, wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_for_output("worker.ready")
    taken_over = 0
    for turn in range(rounds * 3):
        if taken_over == rounds:
            break
        job_ids = [await order(db, tenant) for _ in range(3)]
        busy = await eventually(lambda: leases(superuser, tenant.org_id), pause_s=0.005)
        holder = random.choice([pid for pid, _ in busy.values()])
        stopped = next(worker for worker in workers if worker.popen.pid == holder)
        await asyncio.sleep(random.uniform(0, 0.35))
        stopped.send(signal.SIGSTOP)
        await asyncio.sleep(0.05)  # what the server was doing for it comes to its end
        held = {j: fence for j, (pid, fence) in leases(superuser, tenant.org_id).items() if pid == stopped.popen.pid}
        if turn % 2:
            await eventually(lambda: all(_fence(superuser, j) > fence for j, fence in held.items()), PATIENCE_S)  # noqa: B023
            lost, before = list(held), None
        else:
            await eventually(lambda: closed(superuser, job_ids), PATIENCE_S)  # noqa: B023
            lost = [job_id for job_id, fence in held.items() if _fence(superuser, job_id) > fence]
            before = await _everything(superuser, cluster, job_ids)

        stopped.send(signal.SIGCONT)
        await eventually(lambda: closed(superuser, job_ids) and _noticed(stopped, lost), PATIENCE_S)  # noqa: B023
        await asyncio.sleep(0.1)

        after = await _everything(superuser, cluster, job_ids)
        assert before in (None, after), "a stale write"
        assert all(_fence(superuser, job_id) > held[job_id] for job_id in lost), "the lost run closed the job"
        charged_once(superuser, tenant.org_id, job_ids)
        taken_over += bool(lost)

    tally("MJ7", stopped=taken_over)
    assert taken_over == rounds
    assert await acts.books(db, tenant.org_id) == {}


def _fence(conn: psycopg.Connection, job_id: UUID) -> int:
    """Of the open job, or the one that closed it."""
    query = "SELECT coalesce(q.fence, j.finished_fence) FROM limner.job j LEFT JOIN limner.job_queue q ON q.job_id = j.id WHERE j.id = %s"
    return acts.count(conn, query, job_id)


def _noticed(worker: Process, job_ids: list[UUID]) -> bool:
    """The worker has said of each that it lost it."""
    lines = [line for line in worker.output().splitlines() if "lease.lost" in line or "run.stopped" in line]
    return all(any(str(job_id) in line for line in lines) for job_id in job_ids)


async def _everything(conn: psycopg.Connection, cluster: Cluster, job_ids: list[UUID]) -> dict[str, Any]:
    """All records of the jobs, and the bytes of the objects their owners can see."""
    found: dict[str, Any] = {}
    for name in RECORDS:
        column = {"job": "id", "event": "subject_id"}.get(name, "job_id")
        query = f"SELECT to_jsonb(x)::text FROM limner.{name} x WHERE {column} = ANY(%s) ORDER BY 1"
        found[name] = [row[0] for row in conn.execute(query, [job_ids])]
    store = ObjectStore(None, cluster.home)
    keys = conn.execute(
        "SELECT o ->> 'key', o ->> 'sha256' FROM limner.job j, jsonb_array_elements(j.outputs) o WHERE j.id = ANY(%s)",
        [job_ids],
    ).fetchall()
    assert len(keys) == len(job_ids)
    for key, stated in keys:
        found[key] = hashlib.sha256(await store.read(key)).hexdigest()
        assert found[key] == stated
    return found


async def test_mj7_a_worker_whose_event_loop_is_blocked_loses_its_leases_and_writes_nothing(
    db: Database, make_tenant: MakeTenant, cluster: Cluster, superuser: psycopg.Connection
) -> None:
    """Heartbeats share the loop with the runs: code that holds it lets the leases go, and another worker does the jobs."""
    tenant = await make_tenant()
    blocked = cluster.worker(block_s=3)
    job_ids = [await order(db, tenant) for _ in range(2)]
    held = await eventually(lambda: leases(superuser, tenant.org_id), pause_s=0.005)
    assert {pid for pid, _ in held.values()} == {blocked.popen.pid}

    cluster.worker()
    await eventually(lambda: closed(superuser, job_ids), PATIENCE_S)
    before = await _everything(superuser, cluster, job_ids)
    lost = [job_id for job_id, (_, fence) in held.items() if _fence(superuser, job_id) > fence]
    await eventually(lambda: _noticed(blocked, lost), PATIENCE_S)

    assert lost, "the blocked worker kept its leases"
    assert await _everything(superuser, cluster, job_ids) == before, "a stale write"
    charged_once(superuser, tenant.org_id, job_ids)
    assert await acts.books(db, tenant.org_id) == {}
