"""OP7: wrong clocks change nothing: leases, deadlines, contexts and signed URLs live by the database's clock."""

import asyncio
import re
import signal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import psycopg

from limner.db.pools import Database
from tests import acts
from tests.conftest import Tenant
from tests.faults.cluster import Cluster, charged_once, closed, eventually, leases, order
from tests.running import Client

HOUR_S = 3600.0
LIMNER = Path(__file__).parents[2] / "limner"
WALL_CLOCK = re.compile(r"\btime\.time\(|\btime_ns\(|datetime\.(now|utcnow|today)\(|date\.today\(")


def test_op7_nothing_that_serves_or_works_reads_this_machines_wall_clock() -> None:
    """time.monotonic measures, the database's clock decides; monotonic_ns is no wall clock either."""
    readers = [
        str(file.relative_to(LIMNER))
        for file in LIMNER.rglob("*.py")
        if file.relative_to(LIMNER).parts[0] not in {"cli", "client.py"}  # those run for people, where they are
        and WALL_CLOCK.search(file.read_text().replace("monotonic_ns(", ""))
    ]
    assert readers == []
    assert WALL_CLOCK.search("x = datetime.now(UTC)"), "the search itself works"


async def test_op7_workers_an_hour_off_take_no_live_lease_and_notice_dead_ones(
    db: Database, tenant: Tenant, cluster: Cluster, superuser: psycopg.Connection
) -> None:
    workers = [cluster.worker(slow_s=1.7, skew_s=skew_s, wait=False) for skew_s in (HOUR_S, -HOUR_S)]
    for worker in workers:
        worker.wait_for_output("worker.ready")
    job_ids = [await order(db, tenant) for _ in range(12)]

    await eventually(lambda: closed(superuser, job_ids), 30)
    fences = superuser.execute("SELECT finished_fence, runs FROM limner.job WHERE id = ANY(%s)", [job_ids]).fetchall()
    assert set(fences) == {(1, 1)}, "nobody took a lease that was alive, over more than a lease's length"
    charged_once(superuser, tenant.org_id, job_ids)

    more = [await order(db, tenant) for _ in range(6)]
    await eventually(lambda: leases(superuser, tenant.org_id))  # one of the two may have taken them all
    holders = {pid for pid, _ in leases(superuser, tenant.org_id).values()}
    dead = next(worker for worker in workers if worker.popen.pid in holders)
    left = {j for j, (pid, _) in leases(superuser, tenant.org_id).items() if pid == dead.popen.pid}
    dead.kill()
    held_at = asyncio.get_running_loop().time()
    await eventually(lambda: all(fence == 2 for j, (_, fence) in leases(superuser, tenant.org_id).items() if j in left))
    assert asyncio.get_running_loop().time() - held_at < 4, "a lease of one second is noticed in seconds"
    await eventually(lambda: closed(superuser, more), 30)
    charged_once(superuser, tenant.org_id, more)

    for worker in workers:
        if worker is dead:
            continue
        assert "lease.lost" not in worker.output()
        worker.send(signal.SIGTERM)
        assert worker.popen.wait(20) == 0
    assert await acts.books(db, tenant.org_id) == {}


async def test_op7_an_api_an_hour_off_serves_and_its_urls_are_everybodys(
    tenant: Tenant, cluster: Cluster, http: aiohttp.ClientSession
) -> None:
    apis = [cluster.api(skew_s=skew_s, wait=False) for skew_s in (HOUR_S, -HOUR_S)]
    cluster.worker()
    for api in apis:
        api.wait()
    expiries = set()
    for api in apis:
        client = Client(http, api.url, tenant.api_key)
        accepted = await client.generate("local/canvas", input={"prompt": "a hare", "size": 512})
        assert accepted.status == 202, accepted.body
        url = (await client.finished(accepted.json["job_id"]))["outputs"][0]["url"]
        parts = urlsplit(url)
        expiries.add(int(parse_qs(parts.query)["e"][0]))
        for other in apis:
            got = await client.call("GET", f"{other.url}{parts.path}?{parts.query}")
            assert (got.status, got.body[:4]) == (200, b"\x89PNG"), "signed by one, accepted by all"
    assert max(expiries) - min(expiries) <= HOUR_S, "rounded up to the hour by one clock, the database's"
    assert len(expiries) <= 2
