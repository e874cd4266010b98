"""Four APIs and four workers over one PgBouncer; each is killed once while customers buy, and nobody loses anything."""

import asyncio

import aiohttp
import psutil
import pytest

from limner.db.pools import Database
from tests.conftest import Server, Tenant
from tests.faults import bouncer
from tests.faults.cluster import READY, Cluster, Customers, Supervised, as_superuser, assert_settled, eventually
from tests.running import Client, Process
from tests.tally import Tally

EACH = 4
POOL_SIZE = 3
BETWEEN = 6
"""Orders that must be taken between two kills."""


@pytest.mark.long
async def test_mj5_many_processes_over_one_pooler_are_killed_one_by_one_and_lose_nothing(
    server: Server, db: Database, tenant: Tenant, cluster: Cluster, http: aiohttp.ClientSession, tally: Tally
) -> None:
    with bouncer.running(server, pool_size=POOL_SIZE) as pooler:
        limner = Supervised(cluster, apis=EACH, workers=EACH, slow_s=0.1, env=pooler.env)
        customers = Customers([Client(http, url, tenant.api_key) for url in limner.urls])
        tending = asyncio.create_task(limner.tend())
        buying = [asyncio.create_task(customers.buy_until_stopped(f"c{n}", 0.3)) for n in range(4)]

        async def more() -> None:
            enough = len(customers.accepted) + BETWEEN
            await eventually(lambda: len(customers.accepted) >= enough, 30)

        await more()
        assert all(_over(process, pooler.port) for process in (*limner.apis, *limner.workers))
        for place in range(EACH):
            limner.kill_api(place)
            await more()
            limner.kill_worker(place)
            await more()
            await asyncio.to_thread(limner.workers[place].wait_for_output, READY)
        customers.stop.set()
        await asyncio.gather(*buying)
        found = await customers.results(timeout_s=60)
        tending.cancel()

        assert limner.left_by_themselves == []
        with as_superuser(server) as conn:
            won = await assert_settled(db, tenant, customers, found, conn)
    assert won == len(found), "one instance at a time costs a job one run of its three"
    assert customers.retries > 0, "no customer noticed anything, so no kill was in anybody's way"
    tally("MJ5", kills=2 * EACH, over="one pooler", jobs=len(found), retries=customers.retries)


def _over(process: Process, port: int) -> bool:
    """It has a connection to the pooler."""
    lines = psutil.Process(process.popen.pid).net_connections("tcp")
    return any(line.raddr and line.raddr.port == port for line in lines)
