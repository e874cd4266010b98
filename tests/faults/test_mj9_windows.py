"""MJ9: a worker is killed in each window around a call to a provider that counts: what is paid for twice, and by whom."""

from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub.providers.base import CallClass
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import provider as emulator
from tests.emulators.provider import Provider
from tests.faults import windows
from tests.faults.cluster import charged_once, closed, eventually, leases, order, wallet_start
from tests.faults.windows import WINDOWS, Doomed, Window
from tests.tally import Tally

KILLED = -9
CALLS: dict[Window, tuple[list[str], bool, int, int]] = {
    "before the intent": ([], False, 0, 1),
    "intended": (["intent"], False, 0, 1),
    "asked": (["intent"], False, 1, 2),
    "answered": (["intent"], False, 1, 2),
    "stored": (["intent"], False, 1, 2),
    "finished": (["done"], True, 1, 1),
}
"""What the dead worker leaves: its calls' states, whether the job is closed, how often the provider was asked; and how often in all."""
OVER = "UPDATE limner.job_queue SET claimable_at = clock_timestamp() WHERE org_id = %s"
STATES = "SELECT coalesce(array_agg(state), '{}') FROM limner.provider_call WHERE org_id = %s AND job_id = %s"


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Provider]:
    async with emulator.running() as provider:
        yield provider


@pytest.mark.parametrize("kills", tiers.counts(5, 50, full=1_000))
@pytest.mark.parametrize("call_class", [CallClass.A, CallClass.C])
async def test_mj9_a_kill_in_any_window_costs_at_most_one_call_and_the_customer_nothing(
    server: Server, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, provider: Provider,
    call_class: CallClass, kills: int, tally: Tally,
) -> None:  # fmt: skip
    """`kills` in each window. The leases of the dead are made to end at once, when all are dead: then one worker does the rest."""
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=2 * kills * len(WINDOWS))
    died: dict[UUID, Window] = {}
    for _ in range(kills):
        died |= await _killed(server, db, tenant, superuser, provider, call_class)
    assert Counter(died.values()) == dict.fromkeys(WINDOWS, kills)

    superuser.execute(OVER, [tenant.org_id])
    last = windows.begin(server.home, server.url, provider.url, call_class, None)
    await eventually(lambda: closed(superuser, died), 30 + kills, 0.1)
    last.end()

    asked = {job_id: len(provider.keys[str(job_id)]) for job_id in died}
    drawn = {job_id: provider.drawn[str(job_id)] for job_id in died}
    twice = Counter(died[job_id] for job_id, times in drawn.items() if times > 1)
    tally("MJ9", call_class=call_class.value, kills=len(died), calls=sum(asked.values()), drawn_twice=twice.total())
    assert asked == {job_id: CALLS[window][3] for job_id, window in died.items()}
    assert all(len(set(keys)) == 1 for keys in provider.keys.values()), "asked again under another name"
    assert drawn == (dict.fromkeys(died, 1) if call_class is CallClass.A else asked)
    charged_once(superuser, tenant.org_id, died)
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == (wallet_start(tenant) - len(died) * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}


async def _killed(
    server: Server, db: Database, tenant: Tenant, conn: psycopg.Connection, provider: Provider, call_class: CallClass
) -> dict[UUID, Window]:
    """A worker killed in each window, each with a job of its own; by job, the window, and that it was that window."""
    doomed = [windows.begin(server.home, server.url, provider.url, call_class, window) for window in WINDOWS]
    await eventually(lambda: all(one.ready for one in doomed), 30)
    job_ids = [await order(db, tenant) for _ in doomed]
    await eventually(lambda: not any(one.process.is_alive() for one in doomed), 30)
    assert [one.process.exitcode for one in doomed] == [KILLED] * len(doomed), _logs(doomed)
    by_pid = {one.process.pid: one.plan.window for one in doomed}
    holders = {job_id: by_pid[pid] for job_id, (pid, _) in leases(conn, tenant.org_id).items() if pid in by_pid}
    died: dict[UUID, Window] = {job_id: holders.get(job_id) or "finished" for job_id in job_ids}
    for job_id, window in died.items():
        row = conn.execute(STATES, [tenant.org_id, job_id]).fetchone()
        assert row is not None
        left = (row[0], closed(conn, [job_id]), len(provider.keys[str(job_id)]))
        assert left == CALLS[window][:3], f"not killed {window}: {left}"
    return died


def _logs(doomed: list[Doomed]) -> str:
    return "\n".join(one.plan.base.log.read_text()[-1000:] for one in doomed)
