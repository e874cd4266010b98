"""MJ9: a worker is killed in each window around a call to a provider that counts: what is paid for twice, and by whom."""

from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.base import CallClass
from limner.hub.providers.openai_compatible import offers
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import openai_server, provider
from tests.emulators.openai_server import OpenAIServer
from tests.emulators.provider import Provider
from tests.faults import windows
from tests.faults.cluster import charged_once, closed, eventually, leases, order, order_of, wallet_start
from tests.faults.windows import CLASSES, OPENAI_KEY, WINDOWS, Doomed, Far, TaskWindow
from tests.tally import Tally

KILLED = -9
CALLS: dict[TaskWindow, tuple[list[str], bool, int, int]] = {
    "before the intent": ([], False, 0, 1),
    "intended": (["intent"], False, 0, 1),
    "asked": (["intent"], False, 1, 2),
    "answered": (["intent"], False, 1, 2),
    "stored": (["intent"], False, 1, 2),
    "finished": (["done"], True, 1, 1),
}
"""What the dead worker leaves: its calls' states, whether the job is closed, how often the provider was asked; and how often in all."""
OWN = "own/picture"
OVER = "UPDATE limner.job_queue SET claimable_at = clock_timestamp() WHERE org_id = %s"
STATES = "SELECT coalesce(array_agg(state), '{}') FROM limner.provider_call WHERE org_id = %s AND job_id = %s"


@pytest.mark.parametrize("kills", tiers.counts(5, 50, full=1_000))
@pytest.mark.parametrize("far", ["keyed", "plain", "openai"])
async def test_mj9_a_kill_in_any_window_costs_at_most_one_call_and_the_customer_nothing(
    server: Server,
    db: Database,
    make_tenant: MakeTenant,
    superuser: psycopg.Connection,
    far: Far,
    kills: int,
    tally: Tally,
) -> None:
    """`kills` in each window. The leases of the dead are made to end at once, when all are dead: then one worker does the rest."""
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=2 * kills * len(WINDOWS))
    async with _running(far) as there:
        if isinstance(there, OpenAIServer):
            await _sell(db, tenant, there)
        died: dict[UUID, TaskWindow] = {}
        for _ in range(kills):
            died |= await _killed(server, db, tenant, superuser, there, far)
        assert Counter(died.values()) == dict.fromkeys(WINDOWS, kills)

        superuser.execute(OVER, [tenant.org_id])
        last = windows.begin(server.home, server.url, there.origin, far, None)
        await eventually(lambda: closed(superuser, died), 30 + kills, 0.1)
        last.end()

    asked = {job_id: len(there.keys[str(job_id)]) for job_id in died}
    drawn = {job_id: there.drawn[str(job_id)] for job_id in died}
    twice = Counter(died[job_id] for job_id, times in drawn.items() if times > 1)
    tally("MJ9", far=far, kills=len(died), calls=sum(asked.values()), drawn_twice=twice.total())
    assert asked == {job_id: CALLS[window][3] for job_id, window in died.items()}
    assert all(len(set(keys)) == 1 for keys in there.keys.values()), "asked again under another name"
    assert drawn == (dict.fromkeys(died, 1) if CLASSES[far] is CallClass.A else asked)
    charged_once(superuser, tenant.org_id, died)
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == (wallet_start(tenant) - len(died) * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}


def _running(far: Far) -> AbstractAsyncContextManager[Provider | OpenAIServer]:
    if far == "openai":
        return openai_server.running(OPENAI_KEY)
    return provider.running()


async def _sell(db: Database, tenant: Tenant, there: OpenAIServer) -> None:
    """Pictures by that server, at a credit each."""
    kind: offers.Kind = "image.generate"
    facts = {"name": OWN, "display_name": "Own", "kind": kind, "input_schema": offers.SCHEMAS[kind], "price_mc": MC}
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(tx, facts)
        far = {"name": "far", "display_name": "Far", "adapter": "openai", "base_url": there.url}
        await catalog.put_provider(tx, far)
        await catalog.put_route(tx, OWN, "far", provider_model="painter")


async def _order(db: Database, tenant: Tenant, far: Far) -> UUID:
    wanted: dict[str, Any] = {"prompt": "a hare", "num_outputs": 1}
    return await (order_of(db, tenant, OWN, wanted) if far == "openai" else order(db, tenant))


async def _killed(
    server: Server, db: Database, tenant: Tenant, conn: psycopg.Connection, there: Provider | OpenAIServer, far: Far
) -> dict[UUID, TaskWindow]:
    """A worker killed in each window, each with a job of its own; by job, the window, and that it was that window."""
    doomed = [windows.begin(server.home, server.url, there.origin, far, window) for window in WINDOWS]
    await eventually(lambda: all(one.ready for one in doomed), 30)
    job_ids = [await _order(db, tenant, far) for _ in doomed]
    await eventually(lambda: not any(one.process.is_alive() for one in doomed), 30)
    assert [one.process.exitcode for one in doomed] == [KILLED] * len(doomed), _logs(doomed)
    by_pid = {one.process.pid: one.plan.window for one in doomed}
    holders = {job_id: by_pid[pid] for job_id, (pid, _) in leases(conn, tenant.org_id).items() if pid in by_pid}
    died: dict[UUID, TaskWindow] = {job_id: holders.get(job_id) or "finished" for job_id in job_ids}
    for job_id, window in died.items():
        row = conn.execute(STATES, [tenant.org_id, job_id]).fetchone()
        assert row is not None
        left = (row[0], closed(conn, [job_id]), len(there.keys[str(job_id)]))
        assert left == CALLS[window][:3], f"not killed {window}: {left}"
    return died


def _logs(doomed: list[Doomed]) -> str:
    return "\n".join(one.plan.base.log.read_text()[-1000:] for one in doomed)
