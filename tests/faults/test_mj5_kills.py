"""MJ5: no accepted job is lost and none is billed twice, whatever dies while jobs are being bought and worked on."""

import asyncio
import os
import random
import signal
from collections import Counter

import aiohttp
import pytest

from limner.db.pools import Database
from tests import acts, tiers
from tests.conftest import MakeTenant, Server
from tests.faults.cluster import Cluster, Customers, Supervised, as_superuser, assert_settled, eventually
from tests.running import PATIENCE_S, Client
from tests.tally import Tally

VICTIMS = ("api", "worker", "terminate", "backend")
BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'limner\\_%' AND pid <> pg_backend_pid() ORDER BY random()"
)


@pytest.mark.parametrize("cycles", tiers.counts(20, 50, soak=200, full=1_000))
async def test_mj5_kills_at_random_lose_nothing_and_bill_nothing_twice(
    server: Server, db: Database, make_tenant: MakeTenant, cluster: Cluster, http: aiohttp.ClientSession, cycles: int,
    tally: Tally,
) -> None:  # fmt: skip
    tenant = await make_tenant(credits=1000 + 50 * cycles)
    limner = Supervised(cluster, apis=2, workers=2, slow_s=0.15)
    customers = Customers([Client(http, url, tenant.api_key) for url in limner.urls])
    buying = [asyncio.create_task(customers.buy_until_stopped(f"c{n}", 0.25)) for n in range(3)]
    tending = asyncio.create_task(limner.tend())
    plan = (list(VICTIMS) * cycles)[:cycles]
    random.shuffle(plan)

    for victim in plan:
        enough = len(customers.accepted) + 4
        await eventually(lambda: len(customers.accepted) >= enough, PATIENCE_S)  # noqa: B023
        await asyncio.sleep(random.uniform(0, 0.3))
        if victim == "api":
            limner.kill_api()
        elif victim == "worker":
            limner.kill_worker()
        else:
            await eventually(lambda: _kill_a_backend(server, victim))  # noqa: B023

    await asyncio.sleep(0.5)
    customers.stop.set()
    await asyncio.gather(*buying)
    found = await customers.results(timeout_s=PATIENCE_S)
    tending.cancel()

    assert limner.left_by_themselves == []
    with as_superuser(server) as conn:
        settled = acts.lost_and_doubled(conn, customers.accepted.values())
        tally("MJ5", kills=cycles, jobs=len(customers.accepted), **settled, retries=customers.retries)
        won = await assert_settled(db, tenant, customers, found, conn)
        reclaimed = acts.count(
            conn, "SELECT count(*) FROM limner.job WHERE org_id = %s AND finished_fence > 1", tenant.org_id
        )
    codes = Counter(body["error"]["code"] for body in found.values() if body["status"] != "succeeded")
    assert won >= 0.9 * len(found), f"most jobs survive what kills their workers, but {codes}"
    assert customers.retries > 0, "no customer noticed anything, so no kill was in anybody's way"
    print(f"{cycles} kills: {len(found)} jobs, {won} won, {reclaimed} reclaimed, {customers.retries} retries")


def _kill_a_backend(server: Server, how: str) -> bool:
    """SIGTERM ends one session, SIGKILL makes the whole server start again; False while nobody is connected."""
    with as_superuser(server) as conn:
        found = conn.execute(BACKENDS).fetchone()
    if found is not None:
        os.kill(found[0], signal.SIGTERM if how == "terminate" else signal.SIGKILL)
    return found is not None
