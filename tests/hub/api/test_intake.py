"""Submits that arrive together share a commit, and nobody can tell: answers, money and waiting are each one's own."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database, DatabaseUnavailable
from limner.hub import jobs
from limner.hub.intake import BATCH, Intake
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from tests import acts
from tests.alone import superuser_conninfo
from tests.conftest import MakeTenant, Server, Tenant, opened
from tests.running import Client

GENERATE = "/api/v1/generate"
GOOD: dict[str, Any] = {"model": "local/canvas", "input": {"prompt": "a hare"}}
STRANGERS = "SELECT count(*) FROM limner.end_user WHERE org_id = %s AND external_id = 'stranger'"


@pytest_asyncio.fixture
async def narrow(server: Server) -> AsyncIterator[Database]:
    """So few connections that submits have to share."""
    async with opened(server, 2, sells=False) as database:
        yield database


async def shared(db: Database, *submits: tuple[Tenant, dict[str, Any]]) -> dict[int, int]:
    """One batch in the given order: what is available after each that was accepted, by its place."""
    rows = [(t.org_id, ids.new(), acts.request(t, **changes)) for t, changes in submits]
    async with db.shared_single({t.org_id for t, _ in submits}) as tx:
        placed = await jobs.submit_many(tx, rows)
    return {place: placed[row[1]].available_mc for place, row in enumerate(rows) if row[1] in placed}


async def test_a_batch_takes_what_is_plain_and_writes_nothing_of_the_rest(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    one, two = await make_tenant(credits=3), await make_tenant(credits=5, wallet_credits=7)
    await acts.submit(db, two, key="known")
    await acts.grant(db, two, MC, user="gone")
    superuser.execute(
        "UPDATE limner.end_user SET is_active = false WHERE org_id = %s AND external_id = 'gone'", [two.org_id]
    )
    before = acts.count(superuser, "SELECT count(*) FROM limner.job")

    placed = await shared(
        db, (one, {"price": 2}), (two, {"price": 1, "key": "fresh"}), (two, {"price": 1, "key": "known"}),
        (one, {"price": 2}), (two, {"user": "stranger"}), (two, {"user": "gone"}), (two, {"price": 7, "user": None}),
        (two, {"price": 1, "key": "fresh"}), (one, {"price": 1}), (two, {"price": 1}),
    )  # fmt: skip

    # behind one it does not suffice for, a wallet's next goes alone too
    assert placed == {0: 1 * MC, 1: 3 * MC, 6: 0, 9: 2 * MC}
    assert acts.count(superuser, "SELECT count(*) FROM limner.job") == before + 4
    assert acts.count(superuser, STRANGERS, two.org_id) == 0
    assert await acts.books(db, one.org_id) == await acts.books(db, two.org_id) == {}


async def test_ta5_a_batch_with_a_forged_context_writes_nothing(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    mine, theirs = await make_tenant(), await make_tenant()
    rows = [(mine.org_id, ids.new(), acts.request(mine)), (theirs.org_id, ids.new(), acts.request(theirs))]

    async with db.shared_single([mine.org_id]) as tx:
        tx.ctx = str(tx.ctx).replace(str(mine.org_id), f"{mine.org_id},{theirs.org_id}")
        with pytest.raises(psycopg.Error, match="forged"):
            await jobs.submit_many(tx, rows)

    for tenant in (mine, theirs):
        assert acts.count(superuser, "SELECT count(*) FROM limner.job WHERE org_id = %s", tenant.org_id) == 0


async def test_ta5_a_row_reaches_only_the_organizations_its_batch_was_signed_for(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    mine, theirs = await make_tenant(), await make_tenant()
    rows = [(mine.org_id, ids.new(), acts.request(mine)), (theirs.org_id, ids.new(), acts.request(theirs))]

    async with db.shared_single([mine.org_id]) as tx:
        assert list(await jobs.submit_many(tx, rows)) == [rows[0][1]]

    assert acts.count(superuser, "SELECT count(*) FROM limner.job WHERE org_id = %s", theirs.org_id) == 0


async def test_ta5_a_batchs_context_opens_nothing_but_batches(db: Database, make_tenant: MakeTenant) -> None:
    mine, theirs = await make_tenant(), await make_tenant()

    async with db.shared_single([mine.org_id, theirs.org_id]) as both, db.tenant_single(mine.org_id) as tx:
        tx.ctx = both.ctx
        with pytest.raises(psycopg.Error, match="too many organizations"):
            await jobs.submit(tx, ids.new(), acts.request(mine), again=False)


async def test_ta5_a_row_reaches_only_the_organization_of_its_app(db: Database, make_tenant: MakeTenant) -> None:
    mine, theirs = await make_tenant(), await make_tenant()

    # my organization beside the other's app and user: there is no such user of mine
    assert await shared(db, (mine, {"app_id": theirs.app.id})) == {}


async def test_a_wallet_in_use_is_left_out_and_waited_for_alone(
    db: Database, make_tenant: MakeTenant, server: Server
) -> None:
    busy, other = await make_tenant(), await make_tenant()
    with psycopg.connect(superuser_conninfo(server)) as holder:
        holder.execute("SELECT 1 FROM limner.wallet WHERE org_id = %s FOR UPDATE", [busy.org_id])

        assert await shared(db, (busy, {}), (other, {})) == {1: 999 * MC}


async def test_one_tenants_locked_wallet_does_not_hold_up_the_others(
    client: Client, http: Any, api: Any, make_tenant: MakeTenant, server: Server, tenant: Tenant
) -> None:
    others = [Client(http, api.url, (await make_tenant()).api_key) for _ in range(5)]
    with psycopg.connect(superuser_conninfo(server)) as holder:
        holder.execute("SELECT 1 FROM limner.wallet WHERE org_id = %s FOR UPDATE", [tenant.org_id])
        waiting = [asyncio.create_task(client.call("POST", GENERATE, GOOD)) for _ in range(4)]
        await asyncio.sleep(0.05)

        answers = await asyncio.gather(*(other.call("POST", GENERATE, GOOD) for other in others * 4))

        assert {answer.status for answer in answers} == {202}
        assert not any(task.done() for task in waiting)
        holder.rollback()
    assert [answer.status for answer in await asyncio.gather(*waiting)] == [202] * 4


async def test_mj2_a_crowd_over_few_connections_hears_each_its_own_answer(
    db: Database, narrow: Database, make_tenant: MakeTenant
) -> None:
    """Rich and poor, known and new, keyed and not, of several organizations, all at the same moment."""
    intake = Intake(narrow, bound=1000)
    tenants = [await make_tenant(credits=10, wallet_credits=3) for _ in range(3)]
    wishes: list[dict[str, Any]] = [{}] * 20 + [{"user": None}] * 5 + [{"user": "stranger"}] * 3 + [{"key": "k"}] * 4
    calls = [
        partial(intake.submit, tenant.org_id, acts.request(tenant, **wish), alone=False)
        for tenant in tenants
        for wish in wishes
    ]

    answers = await acts.together(calls)

    for place, tenant in enumerate(tenants):
        mine = answers[place * 32 : place * 32 + 32]
        kinds = [Counter(type(a).__name__ for a in part) for part in (mine[:20], mine[20:25], mine[25:28])]
        keyed = {a.job_id for a in mine[28:] if isinstance(a, jobs.Submitted)}
        assert kinds[1] == {"Submitted": 3, "TooFewCredits": 2}
        assert kinds[2] == {"TooFewCredits": 3}
        assert len(keyed) <= 1
        assert kinds[0]["Submitted"] + len(keyed) == 10
        assert await acts.books(db, tenant.org_id) == {}
        assert (await acts.wallet(db, tenant)).available_mc == 0


async def test_mj4_a_batch_whose_connection_dies_is_neither_lost_nor_doubled(
    db: Database, narrow: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=900)
    intake = Intake(narrow, bound=1000)
    accepted: list[jobs.Submitted] = []

    async def client() -> None:
        for _ in range(60):
            one = await intake.submit(tenant.org_id, acts.request(tenant), alone=False)
            accepted.append(one)

    async def killer() -> None:
        for _ in range(8):
            await asyncio.sleep(0.1)
            superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'limner_api'"
                              " AND datname = current_database() AND state = 'active'")  # fmt: skip

    await asyncio.gather(*(client() for _ in range(12)), killer())

    assert len({one.job_id for one in accepted}) == 720
    assert not any(one.replayed for one in accepted)
    assert acts.count(superuser, "SELECT count(*) FROM limner.job WHERE org_id = %s", tenant.org_id) == 720
    assert await acts.books(db, tenant.org_id) == {}


async def test_more_than_the_backlog_is_refused_at_once(
    narrow: Database, make_tenant: MakeTenant, server: Server
) -> None:
    tenant = await make_tenant()
    intake = Intake(narrow, bound=5)
    with psycopg.connect(superuser_conninfo(server)) as holder:
        holder.execute("LOCK TABLE limner.end_user IN ACCESS EXCLUSIVE MODE")
        calls = (intake.submit(tenant.org_id, acts.request(tenant), alone=False) for _ in range(BATCH + 20))
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0.2)
        refused = [task for task in tasks if task.done()]
        holder.rollback()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert refused
    assert all(isinstance(task.exception(), DatabaseUnavailable) for task in refused)
    assert all(isinstance(task.result(), jobs.Submitted) for task in tasks if task not in refused)


async def test_a_refusal_is_heard_through_the_lane(narrow: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=1)
    intake = Intake(narrow, bound=10)
    await intake.submit(tenant.org_id, acts.request(tenant, key="k", body="a"), alone=False)

    with pytest.raises(refusals.Reused):
        await intake.submit(tenant.org_id, acts.request(tenant, key="k", body="b"), alone=False)
    with pytest.raises(refusals.TooFewCredits):
        await intake.submit(tenant.org_id, acts.request(tenant), alone=False)
    assert (await intake.submit(tenant.org_id, acts.request(tenant, key="k", body="a"), alone=False)).replayed
