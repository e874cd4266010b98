"""MJ9 where providers work on tasks: a worker is killed in each window; from the task's name on nothing is paid for twice."""

from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import defapi_server, replicate_server
from tests.emulators.tasks import TaskServer
from tests.faults import windows
from tests.faults.cluster import charged_once, closed, eventually, leases, order_of, wallet_start
from tests.faults.windows import OPENAI_KEY, TASK_WINDOWS, Doomed, Far, TaskWindow
from tests.tally import Tally

KILLED = -9
LEFT: dict[TaskWindow, tuple[list[str], bool, int]] = {
    "before the intent": ([], False, 0),
    "intended": (["intent"], False, 0),
    "asked": (["intent"], False, 1),
    "answered": (["intent"], False, 1),
    "accepted": (["accepted"], False, 1),
    "polling": (["accepted"], False, 1),
    "stored": (["accepted"], False, 1),
    "finished": (["done"], True, 1),
}
"""What the dead worker leaves: its call's state, whether the job is closed, and how many tasks were made."""
TWICE: frozenset[TaskWindow] = frozenset({"asked", "answered"})
"""The task was made, and its name is known to nobody: it is made once more."""
NAMED: tuple[TaskWindow, ...] = ("polling",)
OF_TASKS: tuple[TaskWindow, ...] = ("answered", "accepted", "polling")
"""The others are tried for every class of providers (test_mj9_windows), and here by make test-long."""
RUNNING = {"replicate": replicate_server.running, "defapi": defapi_server.running}
MODELS = {"replicate": "acme/painter", "defapi": "google/nano-banana"}
OWN = "own/picture"
OVER = "UPDATE limner.job_queue SET claimable_at = clock_timestamp() WHERE org_id = %s"
STATES = "SELECT coalesce(array_agg(state), '{}') FROM limner.provider_call WHERE org_id = %s AND job_id = %s"


@pytest.mark.parametrize(
    ("far", "tried", "kills"),
    [
        *tiers.counts(("replicate", OF_TASKS, 1), ("replicate", TASK_WINDOWS, 25), ("replicate", TASK_WINDOWS, 100)),
        *tiers.counts(("defapi", NAMED, 1), ("defapi", TASK_WINDOWS, 25), ("defapi", TASK_WINDOWS, 100)),
    ],
)
async def test_mj9_from_a_tasks_name_on_a_kill_costs_nobody_anything(
    server: Server,
    db: Database,
    make_tenant: MakeTenant,
    superuser: psycopg.Connection,
    far: Far,
    tried: tuple[TaskWindow, ...],
    kills: int,
    tally: Tally,
) -> None:
    """`kills` in each window. The leases of the dead are made to end at once, when all are dead: then one worker does the rest."""
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=2 * kills * len(tried))
    async with RUNNING[far](OPENAI_KEY) as there:
        there.lasts = 3
        await _sell(db, tenant, there, far)
        died: dict[UUID, TaskWindow] = {}
        names: dict[UUID, str] = {}
        for _ in range(kills):
            died |= await _killed(server, db, tenant, superuser, there, far, tried, names)
        assert Counter(died.values()) == dict.fromkeys(tried, kills)

        superuser.execute(OVER, [tenant.org_id])
        last = windows.begin(server.home, server.url, there.origin, far, None)
        await eventually(lambda: closed(superuser, died), 30 + kills, 0.1)
        last.end()

    made = {job_id: len(there.of(names[job_id])) for job_id in died}
    tally("MJ9", far=far, kills=len(died), tasks=sum(made.values()), twice=sum(n > 1 for n in made.values()))
    assert made == {job_id: 2 if window in TWICE else 1 for job_id, window in died.items()}
    charged_once(superuser, tenant.org_id, died)
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == (wallet_start(tenant) - len(died) * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}


async def _sell(db: Database, tenant: Tenant, there: TaskServer, far: Far) -> None:
    """Pictures by that server, at a credit each."""
    kind: offers.Kind = "image.generate"
    facts = {"name": OWN, "display_name": "Own", "kind": kind, "input_schema": offers.SCHEMAS[kind], "price_mc": MC}
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(tx, facts)
        row = {"name": "far", "display_name": "Far", "adapter": far, "base_url": there.url, "config": {"poll_s": 0.05}}
        await catalog.put_provider(tx, row)
        await catalog.put_route(tx, OWN, "far", provider_model=MODELS[far])


async def _killed(
    server: Server, db: Database, tenant: Tenant, conn: psycopg.Connection, there: TaskServer, far: Far,
    tried: tuple[TaskWindow, ...], names: dict[UUID, str],
) -> dict[UUID, TaskWindow]:  # fmt: skip
    """A worker killed in each window, each with a job of its own; by job, the window, and that it was that window.

    `names`: their prompts, by which the server tells them apart, are put there.
    """
    doomed = [windows.begin(server.home, server.url, there.origin, far, window) for window in tried]
    await eventually(lambda: all(one.ready for one in doomed), 30)
    ordered: dict[UUID, str] = {}
    for _ in doomed:
        wanted: dict[str, Any] = {"prompt": str(uuid4()), "num_outputs": 1}
        ordered[await order_of(db, tenant, OWN, wanted)] = wanted["prompt"]
    names |= ordered
    await eventually(lambda: not any(one.process.is_alive() for one in doomed), 30)
    assert [one.process.exitcode for one in doomed] == [KILLED] * len(doomed), _logs(doomed)
    by_pid = {one.process.pid: one.plan.window for one in doomed}
    holders = {job_id: by_pid[pid] for job_id, (pid, _) in leases(conn, tenant.org_id).items() if pid in by_pid}
    died: dict[UUID, TaskWindow] = {job_id: holders.get(job_id) or "finished" for job_id in ordered}
    for job_id, window in died.items():
        row = conn.execute(STATES, [tenant.org_id, job_id]).fetchone()
        assert row is not None
        left = (row[0], closed(conn, [job_id]), len(there.of(names[job_id])))
        assert left == LEFT[window], f"not killed {window}: {left}"
    return died


def _logs(doomed: list[Doomed]) -> str:
    return "\n".join(one.plan.base.log.read_text()[-1000:] for one in doomed)
