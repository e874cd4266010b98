"""OP4: three times what can be taken is refused at the door, politely; what was taken is done, and then all is as before."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import aiohttp
import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import Tenant
from tests.faults import crash
from tests.faults.cluster import Cluster, eventually
from tests.running import Answer, Client
from tests.tally import Tally

INSERT_S = 0.04
"""What storing a job takes here: the database is the bottleneck, and this machine's other work is not in the result."""
FACTOR = 3
SERVED = 0.75
"""Of what can be served, at least."""
USERS = 24
BODY = {"model": "local/canvas", "input": {"prompt": "a hare"}}
SLOW_DOWN = f"""
CREATE FUNCTION public.take_your_time() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM pg_catalog.pg_sleep({INSERT_S}); RETURN NEW; END';
CREATE TRIGGER take_your_time BEFORE INSERT ON limner.job FOR EACH ROW EXECUTE FUNCTION public.take_your_time();
"""
AS_BEFORE = "DROP TRIGGER take_your_time ON limner.job; DROP FUNCTION public.take_your_time()"


@pytest.fixture
def slow_inserts(superuser: psycopg.Connection) -> Iterator[None]:
    superuser.execute(SLOW_DOWN)
    yield
    superuser.execute(AS_BEFORE)


@dataclass
class Crowd:
    """Customers who come whether or not those before them were served."""

    client: Client
    accepted: list[str] = field(default_factory=list)
    impolite: list[Answer] = field(default_factory=list)
    """Refusals without a code and a time to come again."""
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    async def come(self, rate: float, seconds: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
                group.create_task(self.order())

    async def order(self) -> int:
        headers = {"Idempotency-Key": uuid4().hex, "X-User-ID": f"u{random.randrange(USERS)}"}
        try:
            answer = await self.client.call("POST", "/api/v1/generate", BODY, headers=headers)
        except (aiohttp.ClientError, ConnectionError) as error:
            self.lost.append(repr(error))
            return 0
        self.statuses[answer.status] += 1
        if answer.status == 202:
            self.accepted.append(answer.json["job_id"])
        elif not int(answer.headers.get("retry-after", "0")) > 0 or answer.json["code"] != "unavailable":
            self.impolite.append(answer)
        return answer.status


@pytest.mark.parametrize("seconds", tiers.counts(long=60, soak=300, full=1_800))
async def test_op4_three_times_the_capacity_is_refused_politely_and_what_was_taken_is_done(
    db: Database, tenant: Tenant, cluster: Cluster, superuser: psycopg.Connection, http: aiohttp.ClientSession,
    slow_inserts: None, seconds: int, tally: Tally,
) -> None:  # fmt: skip
    for number in range(USERS):
        await acts.grant(db, tenant, 10_000 * MC, user=f"u{number}")
    api = cluster.api(LIMNER_SUBMIT_BACKLOG="20")
    # a lease as long as in production: one second is soon over on a machine that is overloaded itself
    log, lease = cluster.home / "log" / f"overload-{uuid4().hex[:8]}", (("LIMNER_LEASE_S", "30"),)
    worker = crash.begin(crash.Plan("worker", cluster.home, log, env=lease))  # unharmed; its provider answers at once
    crowd = Crowd(Client(http, api.url, tenant.api_key))
    capacity = 1 / INSERT_S  # one batch at a time

    await crowd.come(capacity * FACTOR, seconds)
    overload = crowd.statuses.copy()
    await eventually(lambda: _one_more(crowd), 60, 0.5)
    before = crowd.statuses.copy()
    await crowd.come(capacity / 5, 4)

    told = {
        "taken": overload[202],
        "refused": overload[503],
        "of_what_can_be_served": round(overload[202] / capacity / seconds, 2),
    }
    tally("OP4", seconds=seconds, factor=FACTOR, **told, lost=len(crowd.lost))
    assert crowd.lost == []
    assert set(overload) == {202, 503}
    assert overload[503] > overload[202], "it was no overload"
    assert overload[202] >= SERVED * overload.total() / FACTOR, "refusing took the time of serving"
    assert crowd.impolite == [], crowd.impolite[0].body
    assert set(crowd.statuses - before) == {202}, "it has recovered"
    open_jobs = "SELECT count(*) FROM limner.job_queue WHERE org_id = %s"
    await eventually(lambda: acts.count(superuser, open_jobs, tenant.org_id) == 0, 120, 0.25)
    worker.kill()
    rows = superuser.execute("SELECT id::text, state FROM limner.job WHERE org_id = %s", [tenant.org_id]).fetchall()
    assert sorted(rows) == sorted((job_id, "succeeded") for job_id in crowd.accepted)
    assert await acts.books(db, tenant.org_id) == {}


async def _one_more(crowd: Crowd) -> bool:
    return await crowd.order() == 202
