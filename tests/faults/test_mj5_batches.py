"""MJ5 for batches: an accepted batch is worked off whoever dies on the way, each item is settled once, and its end is told once."""

import asyncio
import random
from collections import Counter
from uuid import UUID

import aiohttp
import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import MakeTenant
from tests.faults.cluster import Cluster, Customers, Supervised, eventually
from tests.running import PATIENCE_S, Client
from tests.tally import Tally

BATCHES = "/api/v1/batches"


@pytest.mark.parametrize(("kills", "count"), tiers.counts((2, 12), (20, 200), soak=(60, 1000)))
async def test_mj5_a_batch_survives_the_death_of_who_takes_it_and_of_who_works_on_it(
    db: Database, make_tenant: MakeTenant, cluster: Cluster, http: aiohttp.ClientSession, superuser: psycopg.Connection,
    kills: int, count: int, tally: Tally,
) -> None:  # fmt: skip
    tenant = await make_tenant(credits=2 * count)
    # more runs than workers are killed: each has forty items in hand, of which the usual three would fail as the kills happen to fall
    limner = Supervised(cluster, apis=1, workers=2, slow_s=0.3, env={"LIMNER_MAX_RUNS": str(kills)})
    customers = Customers([Client(http, url, tenant.api_key) for url in limner.urls])
    order = {
        "items": [
            {"model": "local/canvas", "input": {"prompt": f"hare {n}", "size": 512, "style": "gradient"}}
            for n in range(count)
        ]
    }
    ordering = [asyncio.create_task(customers.persistently("POST", BATCHES, order, f"batch-{n}")) for n in range(2)]
    limner.kill_api()  # whether they were there already
    taken = await asyncio.gather(*ordering)
    keep, drop = (answer.json["batch_id"] for answer in taken)

    for number in range(kills):
        await asyncio.sleep(random.uniform(0.2, 0.8))
        if number % 2:
            limner.kill_api()
        else:
            limner.kill_worker()
        if number == 0:
            cancelling = asyncio.create_task(customers.persistently("POST", f"{BATCHES}/{drop}/cancel"))
    assert (await cancelling).status in {200, 202}

    async def ended() -> bool:
        bodies = [(await customers.persistently("GET", f"{BATCHES}/{batch_id}")).json for batch_id in (keep, drop)]
        return all(body["completed_at"] for body in bodies)

    await eventually(ended, PATIENCE_S, pause_s=0.2)
    again = await customers.persistently("POST", BATCHES, order, "batch-0")

    assert (again.status, again.json["batch_id"]) == (202, keep)
    states = {batch_id: _states(superuser, batch_id) for batch_id in (keep, drop)}
    assert {sum(found.values()) for found in states.values()} == {count}
    assert states[keep] == {"succeeded": count}
    assert states[drop].keys() <= {"succeeded", "failed", "cancelled"}
    ends = superuser.execute(
        "SELECT subject_id, count(*) FROM limner.event WHERE org_id = %s AND type LIKE 'batch.%%' GROUP BY 1", [tenant.org_id]
    ).fetchall()  # fmt: skip
    assert dict(ends) == {UUID(keep): 1, UUID(drop): 1}
    won = states[keep]["succeeded"] + states[drop]["succeeded"]
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == ((2 * count - won) * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}
    tally("MJ5", batches=2, items=2 * count, kills=kills + 1, won=won, retries=customers.retries)


def _states(conn: psycopg.Connection, batch_id: str) -> Counter[str]:
    rows = conn.execute(
        "SELECT j.state, count(*) FROM limner.batch_item i JOIN limner.job j ON j.id = i.job_id WHERE i.batch_id = %s GROUP BY 1",
        [batch_id],
    )
    return Counter(dict(rows.fetchall()))
