"""MJ4: a retried request is the same request; another request under its key is refused; strangers never meet."""

import asyncio
from functools import partial

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import jobs
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from limner.tenancy import apps
from tests import acts, alone
from tests.conftest import MakeTenant, Server, Tenant


@pytest.mark.parametrize(("keys", "copies"), [(50, 10), pytest.param(1_000, 20, marks=pytest.mark.long)])
async def test_mj4_concurrent_copies_of_a_request_make_one_job_and_one_hold(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, keys: int, copies: int
) -> None:
    tenant = await make_tenant(credits=keys + 10)

    for start in range(0, keys, 10):
        names = [f"key-{n}" for n in range(start, start + 10)]
        answers = await acts.together(
            [lambda k=name: acts.submit(db, tenant, key=k, body=k) for name in names for _ in range(copies)]  # type: ignore[misc]
        )
        for n in range(10):
            same: list[jobs.Submitted] = answers[n * copies : (n + 1) * copies]
            assert len({a.job_id for a in same}) == 1
            assert sorted(a.replayed for a in same) == [False] + [True] * (copies - 1)
            assert len({(a.hold_mc, a.available_mc, a.wait_s) for a in same}) == 1, "every copy gets the first answer"

    made = "SELECT count(*) FROM limner.{} WHERE org_id = %s {}"
    assert acts.count(superuser, made.format("job", ""), tenant.org_id) == keys
    assert acts.count(superuser, made.format("transfer", "AND kind = 'hold'"), tenant.org_id) == keys
    assert (await acts.wallet(db, tenant)).held_mc == keys * MC
    assert await acts.books(db, tenant.org_id) == {}
    acts.empty_queue(superuser)


async def test_mj4_the_prototypes_check_before_insert_makes_several_jobs(
    superuser: psycopg.Connection, server: Server
) -> None:
    """The prototype looks the key up and inserts when it is new: copies that arrive together all find it new."""
    conninfo = alone.superuser_conninfo(server)
    superuser.execute("CREATE TABLE public.seed_job (key text)")
    arrived = asyncio.Barrier(10)

    async def copy() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo) as conn:
            found = await (await conn.execute("SELECT 1 FROM public.seed_job WHERE key = 'k'")).fetchone()
            await arrived.wait()
            if not found:
                await conn.execute("INSERT INTO public.seed_job VALUES ('k')")

    try:
        await asyncio.gather(*(copy() for _ in range(10)))
        assert acts.count(superuser, "SELECT count(*) FROM public.seed_job") > 1
    finally:
        superuser.execute("DROP TABLE public.seed_job")


async def test_mj4_another_request_under_a_used_key_is_refused_and_costs_nothing(db: Database, tenant: Tenant) -> None:
    first = await acts.submit(db, tenant, key="k", body="a hare")
    before = await acts.wallet(db, tenant)

    for changed in ("a fox", "a hare ", "A hare"):
        with pytest.raises(refusals.Reused):
            await acts.submit(db, tenant, key="k", body=changed)

    assert await acts.wallet(db, tenant) == before
    assert (await acts.submit(db, tenant, key="k", body="a hare")).job_id == first.job_id


async def test_mj4_one_of_two_different_requests_racing_for_a_key_wins(db: Database, tenant: Tenant) -> None:
    for number in range(20):
        answers = await acts.together(
            [lambda b=body, n=number: acts.submit(db, tenant, key=f"race-{n}", body=b) for body in ("x", "y") * 4]  # type: ignore[misc]
        )
        won = [a for a in answers if isinstance(a, jobs.Submitted)]
        assert len({a.job_id for a in won}) == 1
        assert len(won) == sum(isinstance(a, refusals.Reused) for a in answers) == 4


@pytest.mark.parametrize("key", ["k", "K", " k", "k ", "ｋ", "k" * 255])
async def test_mj4_keys_are_compared_byte_by_byte(db: Database, tenant: Tenant, key: str) -> None:
    plain = await acts.submit(db, tenant, key="k")

    other = await acts.submit(db, tenant, key=key)

    assert other.replayed == (other.job_id == plain.job_id) == (key == "k")


async def test_mj4_two_organizations_using_one_key_never_meet(db: Database, make_tenant: MakeTenant) -> None:
    left, right = await make_tenant(), await make_tenant()

    a = await acts.submit(db, left, key="sub_renewal_jan", body="left")
    b = await acts.submit(db, right, key="sub_renewal_jan", body="right")

    assert not a.replayed
    assert not b.replayed
    assert a.job_id != b.job_id


async def test_mj4_two_apps_two_users_and_two_routes_using_one_key_never_meet(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(wallet_credits=10)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        second = await apps.create(tx, "second", "Second", actor="test")
    for app_id, user in ((tenant.app.id, "bob"), (second.id, "ann")):
        await acts.grant(db, tenant, 5 * MC, user=user, app_id=app_id)

    answers = [
        await acts.submit(db, tenant, key="k", body="1"),
        await acts.submit(db, tenant, key="k", body="2", user="bob"),
        await acts.submit(db, tenant, key="k", body="3", app_id=second.id),
        await acts.submit(db, tenant, key="k", body="4", user=None),
        await acts.submit(db, tenant, key="k", body="5", user=None, app_id=second.id),
        await acts.submit(db, tenant, key="k", body="6", route="POST /v1/images/generations"),
    ]

    assert len({a.job_id for a in answers}) == 6
    assert not any(a.replayed for a in answers)


async def test_mj4_a_replay_is_answered_even_when_the_wallet_is_empty_and_the_job_is_over(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=1)
    first = await acts.submit(db, tenant, key="k")
    await acts.work(db, first.job_id)

    again = await acts.submit(db, tenant, key="k")

    assert (again.replayed, again.job_id, again.available_mc) == (True, first.job_id, first.available_mc)


async def test_mj4_the_same_job_id_sent_again_is_a_replay_without_any_key(db: Database, tenant: Tenant) -> None:
    """A commit whose answer was lost: the caller sends the very same call again."""
    job_id = ids.new()
    first = await acts.submit(db, tenant, job_id=job_id)

    again = await acts.submit(db, tenant, job_id=job_id)

    assert (first.replayed, again.replayed, again.job_id) == (False, True, job_id)
    with pytest.raises(refusals.Reused):
        await acts.submit(db, tenant, job_id=job_id, body="something else")


async def test_mj4_a_key_lapses_after_thirty_days_and_not_before(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    closed = await acts.submit(db, tenant, key="closed")
    still_open = await acts.submit(db, tenant, key="open")
    await acts.work(db, closed.job_id)

    _age(superuser, "29 days 23 hours", closed, still_open)
    assert (await acts.submit(db, tenant, key="closed")).job_id == closed.job_id

    _age(superuser, "30 days 1 hour", closed, still_open)
    fresh = await acts.submit(db, tenant, key="closed", body="another request under the old key")
    assert fresh.job_id != closed.job_id
    assert (await acts.submit(db, tenant, key="open")).job_id == still_open.job_id, "an open job keeps its key"
    assert (await acts.submit(db, tenant, job_id=closed.job_id)).replayed, "an id never lapses"
    assert await acts.books(db, tenant.org_id) == {}


def _age(superuser: psycopg.Connection, age: str, *submitted: jobs.Submitted) -> None:
    """Closed jobs are frozen for everybody; only a session that plays replica may move their birthday."""
    superuser.execute("SET session_replication_role = replica")
    superuser.execute(
        "UPDATE limner.job SET created_at = clock_timestamp() - %s::interval WHERE id = ANY(%s)",
        [age, [s.job_id for s in submitted]],
    )
    superuser.execute("RESET session_replication_role")


# grants


async def test_mj4_concurrent_copies_of_a_grant_give_once(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)

    for number in range(10):
        answers = await acts.together([lambda n=number: acts.grant(db, tenant, 5 * MC, ref=f"g{n}")] * 10)  # type: ignore[misc]
        assert len({a.transfer_id for a in answers}) == 1
        assert sorted(a.replayed for a in answers) == [False] + [True] * 9
        assert {a.available_mc for a in answers} == {5 * MC * (number + 1)}

    assert (await acts.wallet(db, tenant)).available_mc == 50 * MC
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj4_two_organizations_granting_under_one_reference_both_grant(
    db: Database, make_tenant: MakeTenant
) -> None:
    """The prototype's ledger key is globally unique: the second tenant's `promo_jan` says success and grants nothing."""
    tenants = [await make_tenant(credits=0) for _ in range(3)]

    granted = [await acts.grant(db, tenant, 5 * MC, ref="promo_jan") for tenant in tenants]

    assert [g.replayed for g in granted] == [False] * 3
    assert [(await acts.wallet(db, tenant)).available_mc for tenant in tenants] == [5 * MC] * 3


async def test_mj4_a_batch_grant_does_not_collide_with_itself(db: Database, make_tenant: MakeTenant) -> None:
    """One key for many users: the references carry the place in the batch (the prototype granted the first user only)."""
    tenant = await make_tenant(credits=0)

    for _ in range(2):
        for place, user in enumerate(("ann", "bob", "cyd")):
            await acts.grant(db, tenant, MC, user=user, ref=f"POST /grants:app:jan:{place}", body=user)

    assert [(await acts.wallet(db, tenant, u)).available_mc for u in ("ann", "bob", "cyd")] == [MC] * 3


async def test_mj4_a_reference_used_for_another_grant_is_refused_also_at_the_same_moment(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=1)
    await acts.grant(db, tenant, MC, user="bob")

    for number in range(20):
        rivals = [partial(acts.grant, db, tenant, MC, user=u, ref=f"r{number}", body=u) for u in ("ann", "bob") * 3]
        answers = await acts.together(rivals)
        assert sum(isinstance(a, refusals.Reused) for a in answers) == 3, answers
        assert sum(not isinstance(a, Exception) and not a.replayed for a in answers) == 1, answers

    assert await acts.books(db, tenant.org_id) == {}


async def test_mj4_top_ups_and_refunds_replay_by_reference(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    bought = await acts.top_up(db, tenant, 7 * MC, "invoice-1")
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.work(db, job_id)
    given = await acts.refund(db, tenant, job_id, 400, "ticket-1")

    again = [await acts.top_up(db, tenant, 7 * MC, "invoice-1"), await acts.refund(db, tenant, job_id, 400, "ticket-1")]

    assert [(g.replayed, g.transfer_id, g.available_mc) for g in again] == [
        (True, bought.transfer_id, bought.available_mc),
        (True, given.transfer_id, given.available_mc),
    ]
    with pytest.raises(refusals.Reused):
        await acts.top_up(db, tenant, 8 * MC, "invoice-1")
    with pytest.raises(refusals.Reused):
        await acts.refund(db, tenant, job_id, 300, "ticket-1")
    assert await acts.books(db, tenant.org_id) == {}
