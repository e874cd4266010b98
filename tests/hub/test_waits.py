"""How long a job will take is measured: what the catalog says holds until something has been measured, and no longer."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg

from limner.db.pools import Database
from limner.hub import waits
from limner.hub.waits import Order, WaitEstimates
from tests import acts
from tests.conftest import Tenant
from tests.hub.fixtures import db_alone, server_alone, superuser_alone

__all__ = ["db_alone", "server_alone", "superuser_alone"]

MODEL = "test/painter"
START = datetime(2026, 1, 1, tzinfo=UTC)


async def _history(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, spans: list[tuple[float, float, float]]
) -> None:
    """Jobs that were done: (submitted, started, ended) in seconds after START each."""
    for created, started, ended in spans:
        job_id = (await acts.submit(db, tenant, price=0)).job_id
        await acts.work(db, job_id, charge_mc=0)
        moments = [START + timedelta(seconds=s) for s in (created, started, ended)]
        with superuser.transaction():
            superuser.execute("SET LOCAL session_replication_role = replica")
            superuser.execute(
                "UPDATE limner.job SET created_at = %s, started_at = %s, finished_at = %s WHERE id = %s",
                [*moments, job_id],
            )


async def _measured(db: Database, tenant: Tenant, model: str = MODEL, priority: int = 50) -> waits.Measured:
    async with db.tenant_tx(tenant.org_id) as tx:
        return await waits.measure(tx, tenant.app.id, model, priority)


async def test_without_history_the_catalogs_figure_is_all_there_is(db: Database, tenant: Tenant) -> None:
    measured = await _measured(db, tenant)

    assert measured == waits.Measured(0, 0, 0.0, None)
    assert measured.estimate_s(5) == 5


async def test_an_idle_app_waits_as_long_as_its_model_runs(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    await _history(db, tenant, superuser, [(0, 1, 9), (3600, 3601, 3613)])

    measured = await _measured(db, tenant)

    assert (measured.ahead, measured.done, measured.run_s) == (0, 2, 10)
    assert measured.busy_s == 22, "the hour between the two is nobody's slowness"
    assert measured.estimate_s(5) == 10


async def test_jobs_ahead_wait_for_each_other_at_the_rate_at_which_jobs_were_done(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    # four together in 20 seconds: one every 5, each of them running for 10
    await _history(db, tenant, superuser, [(0, 0, 10), (0, 0, 10), (0, 10, 20), (0, 10, 20)])
    for _ in range(6):
        await acts.submit(db, tenant, price=0)
    await acts.submit(db, tenant, price=0, priority=90)
    await acts.claim(db, 1, lease_s=600)

    first, urgent = await _measured(db, tenant), await _measured(db, tenant, priority=1)

    assert (first.ahead, first.busy_s / first.done) == (6, 5)
    assert first.estimate_s(1000) == 6 * 5 + 10
    assert urgent.ahead == 1, "only what a worker has already stands before it"
    other = await _measured(db, tenant, "test/other")
    assert (other.run_s, other.estimate_s(3)) == (None, 6 * 5 + 3), "another model's run was never measured"


async def test_deferred_jobs_stand_in_nobodys_way_and_a_backlog_hides_no_history(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    await _history(db, tenant, superuser, [(0, 0, 4)])
    for _ in range(waits.SAMPLE + 10):
        await acts.submit(db, tenant, price=0)
    with_backlog = await _measured(db, tenant)
    acts.empty_queue(superuser)

    assert (with_backlog.ahead, with_backlog.done) == (waits.SAMPLE + 10, 1)
    assert (await _measured(db, tenant)).ahead == 0


async def test_an_estimate_is_remembered_and_measured_once(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    await _history(db, tenant, superuser, [(0, 0, 7)])
    estimates = WaitEstimates(db)
    order = Order(tenant.org_id, tenant.app.id, MODEL, 50)

    first = await acts.together([lambda: estimates.get(order, 99)] * 5)
    await _history(db, tenant, superuser, [(100, 100, 200)])

    assert first == [7] * 5, "the first answer is measured already"
    assert await estimates.get(order, 99) == 7
    assert await estimates.get(Order(tenant.org_id, tenant.app.id, MODEL, 51), 99) == 54


async def test_who_never_ordered_anything_is_told_the_catalogs_figure(db: Database, tenant: Tenant) -> None:
    nobody = Order(UUID(int=7), UUID(int=8), MODEL, 1)

    assert await WaitEstimates(db).get(nobody, 2.5) == 3
