"""How workers are shared: by weight between organizations and between their apps; caps and pauses hold nobody else up (MJ17)."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from uuid import UUID

import psycopg
import pytest

from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import queue, runs
from limner.tenancy import apps
from tests import acts
from tests.conftest import MakeTenant, Tenant

LONG_S = 600.0


@pytest.fixture(autouse=True)
def _only_this_tests_jobs(superuser: psycopg.Connection) -> None:
    acts.empty_queue(superuser)
    superuser.execute("UPDATE limner.queue_policy SET weight = 1, max_running = NULL, paused_at = NULL")


def _plant(
    superuser: psycopg.Connection, tenant: Tenant, count: int, *, app_id: UUID | None = None, phase: str = "ready"
) -> None:
    """Rows of the queue alone: claims look at nothing else."""
    with superuser.transaction():
        superuser.execute("SET LOCAL session_replication_role = replica")  # no jobs, no holds
        superuser.execute(
            "INSERT INTO limner.job_queue (org_id, job_id, app_id, wallet_id, hold_mc, priority, phase, claimable_at, max_runs,"
            " deadline_at) SELECT %(org)s, gen_random_uuid(), %(app)s, %(org)s, 0, 50, %(phase)s,"
            " now() + CASE WHEN %(phase)s = 'deferred' THEN interval '1 day' ELSE interval '0' END, 3, now() + interval '2 days'"
            " FROM generate_series(1, %(n)s)",
            {"org": tenant.org_id, "app": app_id or tenant.app.id, "phase": phase, "n": count},
        )


def _unplant(superuser: psycopg.Connection) -> None:
    superuser.execute(
        "DELETE FROM limner.job_queue q WHERE NOT EXISTS (SELECT 1 FROM limner.job j WHERE j.id = q.job_id)"
    )


@pytest.fixture(autouse=True)
def _planted_rows_go(superuser: psycopg.Connection) -> Iterator[None]:
    yield
    _unplant(superuser)


async def _share(db: Database, tenant: Tenant, app_id: UUID | None = None, **share: int) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await queue.share(tx, app_id, actor="test", weight=share.get("weight"), max_running=share.get("max_running"))


async def _app(db: Database, tenant: Tenant, slug: str) -> UUID:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        return (await apps.create(tx, slug, slug, actor="test")).id


async def _claim(db: Database, n: int, cap: int | None = None) -> list[runs.Lease]:
    async with db.system_tx("limner_dispatch", "a test claims") as tx:
        rows = await tx.all("SELECT * FROM limner.claim_jobs('w1', %s, %s, %s)", [n, LONG_S, cap])
    return [runs.Lease(**row) for row in rows]


def _end(superuser: psycopg.Connection, leases: Sequence[runs.Lease]) -> None:
    superuser.execute("DELETE FROM limner.job_queue WHERE job_id = ANY(%s)", [[held.job_id for held in leases]])


def _orgs(leases: Sequence[runs.Lease]) -> Counter[UUID]:
    return Counter(held.org_id for held in leases)


@pytest.mark.parametrize("n", [1, 8])
async def test_mj17_short_jobs_are_shared_by_weight(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, n: int
) -> None:
    """Every claim finds nothing running: lots decide, three to one. 600 of them miss by 90 once in 10^17 runs."""
    heavy, light = await make_tenant(), await make_tenant()
    await _share(db, heavy, weight=3)
    for tenant in (heavy, light):
        _plant(superuser, tenant, 600)
    taken: Counter[UUID] = Counter()

    for _ in range(600 // n):
        leases = await _claim(db, n)
        taken += _orgs(leases)
        _end(superuser, leases)

    assert taken.total() == 600
    assert 360 <= taken[heavy.org_id] <= 540, taken


async def test_mj17_what_runs_for_long_is_shared_by_weight_exactly(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    heavy, light = await make_tenant(), await make_tenant()
    await _share(db, heavy, weight=3)
    for tenant in (heavy, light):
        _plant(superuser, tenant, 300)

    at_once = _orgs(await _claim(db, 64))
    singly = Counter(at_once)
    for _ in range(64):
        singly += _orgs(await _claim(db, 1))

    assert at_once == {heavy.org_id: 48, light.org_id: 16}
    assert singly == {heavy.org_id: 96, light.org_id: 32}


async def test_mj17_a_newcomer_is_brought_level_with_who_runs_already(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    first, late = await make_tenant(), await make_tenant()
    _plant(superuser, first, 100)
    assert len(await _claim(db, 20)) == 20
    _plant(superuser, late, 100)

    assert _orgs(await _claim(db, 20)) == {late.org_id: 20}
    assert _orgs(await _claim(db, 20)) == {first.org_id: 10, late.org_id: 10}


async def test_mj17_ten_apps_get_no_more_than_one(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    many, one = await make_tenant(), await make_tenant()
    made = [await _app(db, many, f"app-{n}") for n in range(10)]
    for app_id in made:
        _plant(superuser, many, 100, app_id=app_id)
    _plant(superuser, one, 200)

    leases = await _claim(db, 60)

    assert _orgs(leases) == {many.org_id: 30, one.org_id: 30}
    assert set(Counter(held.app_id for held in leases if held.org_id == many.org_id).values()) == {3}


async def test_mj17_apps_of_one_organization_are_shared_by_weight(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    heavy = await _app(db, tenant, "heavy")
    await _share(db, tenant, heavy, weight=3)
    _plant(superuser, tenant, 100)
    _plant(superuser, tenant, 100, app_id=heavy)

    leases = await _claim(db, 40)

    assert Counter(held.app_id for held in leases) == {heavy: 30, tenant.app.id: 10}


async def _race(db: Database, superuser: psycopg.Connection, cap: int | None) -> None:
    """Four claimers at once, again and again, while nothing ends."""

    async def claimer() -> None:
        for _ in range(10):
            await _claim(db, 5, cap)

    await asyncio.gather(*(claimer() for _ in range(4)))


def _running(superuser: psycopg.Connection, tenant: Tenant, app_id: UUID | None = None) -> int:
    return acts.count(
        superuser,
        "SELECT count(*) FROM limner.job_queue WHERE phase = 'leased' AND org_id = %s AND app_id = coalesce(%s, app_id)",
        tenant.org_id,
        app_id,
    )


async def test_mj17_caps_hold_under_four_claimers_and_hold_nobody_up(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    capped, by_app, free = await make_tenant(), await make_tenant(), await make_tenant()
    small = await _app(db, by_app, "small")
    await _share(db, capped, max_running=7)
    await _share(db, by_app, small, max_running=3)
    for tenant in (capped, free):
        _plant(superuser, tenant, 60)
    _plant(superuser, by_app, 30, app_id=small)
    _plant(superuser, by_app, 40)

    await _race(db, superuser, None)

    assert _running(superuser, capped) == 7
    assert _running(superuser, by_app, small) == 3
    assert _running(superuser, by_app, by_app.app.id) == 40, "a full app holds up no other app of its organization"
    assert _running(superuser, free) == 60


async def test_mj17_the_installations_cap_holds_for_all_and_an_organizations_own_comes_first(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    one, two, larger = await make_tenant(), await make_tenant(), await make_tenant()
    await _share(db, larger, max_running=20)
    for tenant in (one, two, larger):
        _plant(superuser, tenant, 60)

    await _race(db, superuser, 6)

    assert [_running(superuser, tenant) for tenant in (one, two, larger)] == [6, 6, 20]


async def test_mj17_room_under_a_cap_comes_back_when_a_job_ends(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    await _share(db, tenant, max_running=2)
    _plant(superuser, tenant, 10)
    first = await _claim(db, 5)

    assert (len(first), await _claim(db, 5)) == (2, [])
    _end(superuser, first[:1])
    assert len(await _claim(db, 5)) == 1


async def test_mj17_pauses_hold_nobody_else_up(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    paused, half, free = await make_tenant(), await make_tenant(), await make_tenant()
    second = await _app(db, half, "second")
    for tenant in (paused, half, free):
        _plant(superuser, tenant, 20)
    _plant(superuser, half, 20, app_id=second)
    async with db.tenant_tx(paused.org_id, "limner_operator") as tx:
        await queue.pause(tx, None, actor="test", reason="a test")
    async with db.tenant_tx(half.org_id, "limner_operator") as tx:
        await queue.pause(tx, second, actor="test", reason="a test")

    leases = await _claim(db, 30)

    assert _orgs(leases) == {half.org_id: 15, free.org_id: 15}
    assert second not in {held.app_id for held in leases}
    async with db.tenant_tx(paused.org_id, "limner_operator") as tx:
        assert await queue.resume(tx, None, actor="test")
    assert _orgs(await _claim(db, 10)) == {paused.org_id: 10}


async def test_mj17_a_pause_of_everybody_lets_only_overdue_jobs_be_closed(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    _plant(superuser, tenant, 5)
    late = (await acts.submit(db, tenant)).job_id
    superuser.execute("UPDATE limner.job_queue SET deadline_at = now() - interval '1 s' WHERE job_id = %s", [late])
    async with db.tenant_tx(PLATFORM, "limner_operator") as tx:
        await queue.pause(tx, None, actor="test", reason="a test")

    leases = await _claim(db, 10)

    assert [(held.job_id, held.exhausted) for held in leases] == [(late, "deadline_exceeded")]
    async with db.tenant_tx(PLATFORM, "limner_operator") as tx:
        await queue.resume(tx, None, actor="test")
    assert len(await _claim(db, 10)) == 5
    await acts.finish(db, leases[0], "failed")


async def test_mj17_ten_thousand_jobs_for_later_are_not_looked_at(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """Rows a claim reads, by the server's own count, with and without them."""
    tenant, later = await make_tenant(), await make_tenant()
    _plant(superuser, tenant, 400)
    superuser.execute("VACUUM ANALYZE limner.job_queue")
    without = _rows_read_by_a_claim(superuser)
    _plant(superuser, later, 10_000, phase="deferred")
    superuser.execute("VACUUM ANALYZE limner.job_queue")

    beside = _rows_read_by_a_claim(superuser)

    assert 0 < beside <= without + 50, "no scan of what waits for its time"


def _rows_read_by_a_claim(superuser: psycopg.Connection) -> int:
    with superuser.transaction(force_rollback=True):
        superuser.execute("SET LOCAL ROLE limner_dispatch")
        superuser.execute("SELECT count(*) FROM limner.claim_jobs('w1', 10, 60)")
        return acts.count(
            superuser,
            "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables"
            " WHERE schemaname = 'limner' AND relname = 'job_queue'",
        )
