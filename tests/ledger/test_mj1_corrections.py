"""MJ1 where credits are put right: adjustments, and clawbacks that leave a debt."""

from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import corrections, refusals
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.ledger.test_mj1_lots import in_days, left, purse


async def test_mj1_an_adjustment_goes_up_or_down_once_a_reference(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=5)

    up = await acts.adjust(db, tenant, 2 * MC, "up", expires_at=in_days(3))
    down = await acts.adjust(db, tenant, -4 * MC, "down")
    again = await acts.adjust(db, tenant, -4 * MC, "down")

    assert (up.available_mc, down.available_mc) == (7 * MC, 3 * MC)
    assert (again.replayed, again.transfer_id, again.available_mc) == (True, down.transfer_id, 3 * MC)
    assert await left(db, tenant) == [], "what ends soonest goes first"
    for wrong in (4 * MC, -3 * MC):
        with pytest.raises(refusals.Reused):
            await acts.adjust(db, tenant, wrong, "down")
    assert await purse(db, tenant) == (3, 0, 0)


async def test_mj1_an_adjustment_down_takes_what_is_there_and_no_more(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=5)
    await acts.grant(db, tenant, 3 * MC, expires_at=in_days(2))
    acts.pass_time(superuser, tenant.org_id, timedelta(days=3))

    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.adjust(db, tenant, -6 * MC, "down")

    assert (caught.value.balance_mc, caught.value.required_mc) == (5 * MC, 6 * MC)
    assert (await acts.adjust(db, tenant, -5 * MC, "down")).available_mc == 0
    assert await purse(db, tenant) == (0, 0, 0)


async def test_mj1_a_clawback_takes_what_is_there_and_the_rest_is_owed(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=5)
    job_id = (await acts.submit(db, tenant, price=3)).job_id

    done = await acts.claw_back(db, tenant, 6 * MC, "chargeback")
    again = await acts.claw_back(db, tenant, 6 * MC, "chargeback")

    assert (done.replayed, done.taken_mc, done.owed_mc, done.available_mc) == (False, 2 * MC, 4 * MC, 0)
    assert again == corrections.Clawback(True, done.transfer_id, 0, 2 * MC, 4 * MC)
    assert await purse(db, tenant) == (0, 3, 4)
    with pytest.raises(refusals.Reused):
        await acts.claw_back(db, tenant, 5 * MC, "chargeback")
    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.submit(db, tenant, price=0)
    assert caught.value.owed_mc == 4 * MC

    await acts.cancel(db, tenant, job_id)
    assert await purse(db, tenant) == (0, 0, 1), "what a job gives back pays too"
    granted = await acts.grant(db, tenant, 3 * MC, ref="g")
    assert (granted.available_mc, granted.repaid_mc) == (2 * MC, MC)
    assert await purse(db, tenant) == (2, 0, 0)
    replay = await acts.grant(db, tenant, 3 * MC, ref="g")
    assert (replay.replayed, replay.available_mc, replay.repaid_mc) == (True, 2 * MC, MC)
    await acts.submit(db, tenant, price=2)
    owed = "SELECT count(*) FROM limner.transfer WHERE org_id = %s AND owed_wallet IS NOT NULL"
    assert acts.count(superuser, owed, tenant.org_id) == 3


async def test_mj1_a_clawback_from_an_empty_wallet_is_all_owed(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=1)
    await acts.adjust(db, tenant, -MC, "empty")

    done = await acts.claw_back(db, tenant, 2 * MC, "c")

    assert (done.taken_mc, done.owed_mc, done.available_mc) == (0, 2 * MC, 0)
    assert await acts.claw_back(db, tenant, 2 * MC, "c") == corrections.Clawback(True, done.transfer_id, 0, 0, 2 * MC)
    assert await purse(db, tenant) == (0, 0, 2)


async def test_mj1_credits_that_end_pay_a_debt_too_and_refunds_do(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=3)
    job_id = (await acts.submit(db, tenant, price=3)).job_id
    await acts.work(db, job_id, charge_mc=3 * MC)
    await acts.claw_back(db, tenant, 5 * MC, "c")

    await acts.refund(db, tenant, job_id, 2 * MC, "r")
    assert await purse(db, tenant) == (0, 0, 3)
    await acts.grant(db, tenant, 4 * MC, expires_at=in_days(5))

    assert await left(db, tenant) == [("grant", 1, 5)]
    assert await purse(db, tenant) == (1, 0, 0)


async def test_mj1_the_organizations_own_wallet_is_adjusted_and_clawed_back_too(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0, wallet_credits=4, grants="from_wallet")

    await acts.adjust(db, tenant, -MC, "a", user=None)
    await acts.claw_back(db, tenant, 5 * MC, "c", user=None)
    assert await purse(db, tenant, None) == (0, 0, 2)
    await acts.top_up(db, tenant, 3 * MC, "t")

    assert await purse(db, tenant, None) == (1, 0, 0)


async def test_mj1_references_with_strange_endings_are_references_of_their_own(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=1)

    first = await acts.claw_back(db, tenant, 2 * MC, "a")
    second = await acts.claw_back(db, tenant, MC, "a:owed")

    assert (first.replayed, second.replayed) == (False, False)
    assert await purse(db, tenant) == (0, 0, 2)


@pytest.mark.parametrize("verb", [acts.adjust, acts.claw_back])
async def test_mj1_one_reference_at_the_same_moment_for_two_wallets_moves_one(
    db: Database, make_tenant: MakeTenant, verb: Any
) -> None:
    tenant = await make_tenant(credits=500)
    await acts.grant(db, tenant, 500 * MC, user="bob")

    for number in range(15):
        answers = await acts.together([partial(verb, db, tenant, MC, f"r{number}", user) for user in ("ann", "bob")])
        assert "Reused" in {type(a).__name__ for a in answers}, answers
        assert sum(isinstance(a, Exception) for a in answers) == 1, answers
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_copies_of_one_correction_move_once(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=10)

    taken = await acts.together([lambda: acts.claw_back(db, tenant, 3 * MC, "c")] * 12)
    given = await acts.together([lambda: acts.adjust(db, tenant, 2 * MC, "a")] * 12)

    assert sorted(a.replayed for a in taken) == sorted(a.replayed for a in given) == [False] + [True] * 11
    assert await purse(db, tenant) == (9, 0, 0)


async def test_mj1_there_is_nothing_to_correct_in_a_wallet_that_is_absent_or_foreign(
    db: Database, make_tenant: MakeTenant, tenant: Tenant
) -> None:
    other = (await acts.wallet(db, await make_tenant())).id
    for wallet_id in (ids.new(), other):
        async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
            with pytest.raises(refusals.Absent):
                await corrections.adjust(tx, wallet_id, MC, "x", ref="r")
        async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
            with pytest.raises(refusals.Absent):
                await corrections.claw_back(tx, wallet_id, MC, "x", ref="r")


@pytest.mark.parametrize("amount", [0, 10**15 + 1])
async def test_mj1_a_correction_is_more_than_nothing_and_less_than_absurd(
    db: Database, tenant: Tenant, amount: int
) -> None:
    for call in (
        acts.adjust(db, tenant, amount, "a"), acts.adjust(db, tenant, -amount, "b"), acts.claw_back(db, tenant, amount, "c"),
    ):  # fmt: skip
        with pytest.raises(refusals.BadAmount):
            await call


async def test_mj1_a_grant_and_a_bonus_share_one_reference(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)
    await acts.grant(db, tenant, MC, user="bob")
    await acts.grant(db, tenant, MC)

    for number in range(15):
        answers = await acts.together(
            [
                partial(acts.grant, db, tenant, MC, ref=f"r{number}", body="a"),
                partial(acts.grant, db, tenant, MC, ref=f"r{number}", body="b", user="bob", kind="bonus"),
            ]
        )
        assert sorted(type(a).__name__ for a in answers) == ["Grant", "Reused"], answers
