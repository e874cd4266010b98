"""MJ16: workers are killed in each window between a job's last commit and the record that its webhook arrived: no event is lost."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from standardwebhooks import Webhook

from limner.db.pools import Database
from limner.events import endpoints
from limner.kit import signing
from limner.kit.crypto import Sealer
from tests import acts, tiers
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import receiver as emulator
from tests.emulators.receiver import Receiver
from tests.faults import mailing
from tests.faults.cluster import eventually
from tests.faults.mailing import WINDOWS, Doomed, Window
from tests.tally import Tally

KILLED = -9
OVER = (
    "UPDATE limner.webhook_delivery SET lease_until = clock_timestamp() WHERE org_id = %s AND phase = 'leased'",
    "UPDATE limner.webhook_endpoint SET turn_at = clock_timestamp() WHERE org_id = %s",
)
OWED = """
SELECT count(*) FROM limner.event v LEFT JOIN limner.webhook_delivery d ON d.org_id = v.org_id AND d.event_id = v.id
 WHERE v.org_id = %s AND v.type = 'job.completed' AND d.phase IS DISTINCT FROM 'delivered'
"""


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with emulator.running() as receiver:
        yield receiver


@pytest.mark.parametrize("kills", tiers.counts(5, 50, full=1_000))
async def test_mj16_a_kill_in_any_window_loses_no_webhook_and_never_changes_its_id(
    server: Server, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, receiver: Receiver, kills: int,
    tally: Tally,
) -> None:  # fmt: skip
    """`kills` in each window. The leases of the dead are made to end at once, when all are dead: then one worker does the rest."""
    acts.empty_queue(superuser)
    superuser.execute("UPDATE limner.webhook_endpoint SET turn_at = NULL, is_enabled = false")
    tenant = await make_tenant(credits=100_000)
    sealer = Sealer(server.root, endpoints.PURPOSE)
    async with db.tenant_tx(tenant.org_id) as tx:
        made = await endpoints.create(tx, sealer, tenant.app.id, f"{receiver.url}/hook/200", most=1)
        [secret] = (await endpoints.keys(tx, sealer, made.id)).secrets
    died: Counter[Window] = Counter()
    jobs: list[UUID] = []
    for _ in range(kills):
        died += await _killed(server, db, tenant, receiver, jobs)
    assert died == dict.fromkeys(WINDOWS, kills)

    for statement in OVER:
        superuser.execute(statement, [tenant.org_id])
    last = mailing.begin(server.home, server.url, receiver.url, None)
    await eventually(lambda: acts.count(superuser, OWED, tenant.org_id) == 0, 30 + kills, 0.1)
    last.end()

    ids: dict[str, set[str]] = defaultdict(set)
    for got in receiver.got:
        told = Webhook(signing.secret_text(secret)).verify(got.body, dict(got.headers))
        ids[told["job_id"]].add(got.id)
    twice = len(receiver.got) - len(jobs)
    tally("MJ16", kills=died.total(), events=len(jobs), lost=len(set(map(str, jobs)) - set(ids)), sent_twice=twice)
    assert set(ids) == set(map(str, jobs)), "an event was lost"
    assert {len(found) for found in ids.values()} == {1}, "an id changed between tries"
    assert twice == 2 * kills, "sent again only what was killed between the request and its record"


async def _killed(
    server: Server, db: Database, tenant: Tenant, receiver: Receiver, jobs: list[UUID]
) -> Counter[Window]:
    """A worker killed in each window; jobs end one after another until all are dead."""
    doomed = [mailing.begin(server.home, server.url, receiver.url, window) for window in WINDOWS]
    await eventually(lambda: all(one.ready for one in doomed), 30)
    deadline = asyncio.get_running_loop().time() + 30
    while any(one.process.is_alive() for one in doomed):
        assert asyncio.get_running_loop().time() < deadline, _logs(doomed)
        job_id = (await acts.submit(db, tenant)).job_id
        await acts.work(db, job_id)
        jobs.append(job_id)
        await asyncio.sleep(0.05)
    assert [one.process.exitcode for one in doomed] == [KILLED] * len(doomed), _logs(doomed)
    return Counter(one.plan.window for one in doomed if one.plan.window is not None)


def _logs(doomed: list[Doomed]) -> str:
    return "\n".join(one.plan.base.log.read_text()[-1000:] for one in doomed)
