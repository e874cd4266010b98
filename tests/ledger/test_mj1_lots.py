"""MJ1 where credits end: which are spent first, where they come back to, and what becomes of them when their time is over."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from limner.ledger import lots, refusals
from tests import acts
from tests.conftest import MakeTenant, Tenant

DAY = timedelta(days=1)


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + days * DAY


async def left(db: Database, tenant: Tenant, user: str | None = "ann") -> list[tuple[str, int, int]]:
    """(kind, credits left, whole days until it ends, about) of each open lot, in the order they are spent in."""
    now = datetime.now(UTC)
    return [
        (lot.kind, lot.remaining_mc // MC, round((lot.expires_at - now) / DAY))
        for lot in await acts.open_lots(db, tenant, user)
    ]


async def purse(db: Database, tenant: Tenant, user: str | None = "ann") -> tuple[int, int, int]:
    """What can be spent, is on hold and is owed, in credits; and the books are right."""
    wallet = await acts.wallet(db, tenant, user)
    assert await acts.books(db, tenant.org_id) == {}
    return wallet.available_mc // MC, wallet.held_mc // MC, wallet.owed_mc // MC


async def three_kinds(db: Database, tenant: Tenant) -> None:
    """1 that never ends, a bonus of 2 for ten days, a grant of 3 for five, granted in the worst order."""
    await acts.grant(db, tenant, 2 * MC, kind="bonus", expires_at=in_days(10))
    await acts.grant(db, tenant, 1 * MC)
    await acts.grant(db, tenant, 3 * MC, expires_at=in_days(5))


async def test_mj1_what_ends_soonest_is_spent_first_and_what_never_ends_last(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0)
    await three_kinds(db, tenant)
    assert await left(db, tenant) == [("grant", 3, 5), ("bonus", 2, 10)]

    await acts.submit(db, tenant, price=4)
    assert await left(db, tenant) == [("bonus", 1, 10)]
    await acts.submit(db, tenant, price=2)

    assert await left(db, tenant) == []
    assert await purse(db, tenant) == (0, 6, 0)
    with pytest.raises(refusals.TooFewCredits):
        await acts.submit(db, tenant)


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
async def test_mj1_a_job_that_charges_nothing_gives_its_credits_back_to_the_lots_they_came_from(
    db: Database, make_tenant: MakeTenant, outcome: str
) -> None:
    tenant = await make_tenant(credits=0)
    await three_kinds(db, tenant)
    job_id = (await acts.submit(db, tenant, price=6)).job_id
    assert await left(db, tenant) == []

    if outcome == "failed":
        await acts.work(db, job_id, "failed")
    else:
        await acts.cancel(db, tenant, job_id)

    assert await left(db, tenant) == [("grant", 3, 5), ("bonus", 2, 10)]
    assert await purse(db, tenant) == (6, 0, 0)


async def test_mj1_a_part_charge_consumes_in_the_same_order_and_the_rest_returns(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0)
    await three_kinds(db, tenant)
    job_id = (await acts.submit(db, tenant, price=6)).job_id

    await acts.work(db, job_id, charge_mc=4 * MC)

    assert await left(db, tenant) == [("bonus", 1, 10)]
    assert await purse(db, tenant) == (2, 0, 0)


async def test_mj1_what_ended_is_not_spendable_before_it_is_swept_and_lapses_by_a_transfer_a_lot(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    await three_kinds(db, tenant)
    acts.pass_time(superuser, tenant.org_id, 6 * DAY)

    assert await purse(db, tenant) == (3, 0, 0)
    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.submit(db, tenant, price=4)
    assert (caught.value.balance_mc, caught.value.required_mc) == (3 * MC, 4 * MC)
    assert await acts.expire(db, tenant) == 1
    assert await acts.expire(db, tenant) == 0

    [line] = [line for line in await acts.lines(db, tenant) if line.kind == "expire"]
    assert (line.change_mc, line.available_mc) == (-3 * MC, 3 * MC)
    assert line.why.startswith("Unused grant credits that ended 20")
    assert await purse(db, tenant) == (3, 0, 0)
    assert await left(db, tenant) == [("bonus", 2, 4)]


async def test_mj1_a_submit_sweeps_what_has_ended_itself(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    await three_kinds(db, tenant)
    acts.pass_time(superuser, tenant.org_id, 6 * DAY)

    assert (await acts.submit(db, tenant, price=3)).available_mc == 0

    assert [line.kind for line in await acts.lines(db, tenant)][:2] == ["hold", "expire"]
    assert await purse(db, tenant) == (0, 3, 0)


async def test_mj1_a_grant_answers_what_can_be_spent_without_what_has_ended(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    await three_kinds(db, tenant)
    acts.pass_time(superuser, tenant.org_id, 6 * DAY)

    assert (await acts.grant(db, tenant, MC)).available_mc == 4 * MC


async def test_mj1_a_hold_outlives_its_lot_and_keeps_its_price_but_what_comes_back_has_lapsed(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    await three_kinds(db, tenant)
    charged = (await acts.submit(db, tenant, price=2)).job_id  # all of the grant that ends first
    failing = (await acts.submit(db, tenant, price=2)).job_id  # 1 of it, 1 of the bonus
    acts.pass_time(superuser, tenant.org_id, 6 * DAY)

    await acts.work(db, charged, charge_mc=2 * MC)
    assert await purse(db, tenant) == (2, 2, 0)
    await acts.work(db, failing, "failed")

    assert await purse(db, tenant) == (3, 0, 0)
    assert await left(db, tenant) == [("bonus", 2, 4)]
    [line] = [line for line in await acts.lines(db, tenant) if line.kind == "expire"]
    assert (line.change_mc, line.why) == (-MC, "Came back from a job after they had ended")


async def test_mj1_a_refund_lives_as_long_as_its_lot_would_have_or_thirty_days(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0)
    await acts.grant(db, tenant, 2 * MC, expires_at=in_days(5))
    await acts.grant(db, tenant, 2 * MC, kind="bonus", expires_at=in_days(100))
    await acts.grant(db, tenant, 1 * MC)
    job_id = (await acts.submit(db, tenant, price=5)).job_id
    await acts.work(db, job_id, charge_mc=5 * MC)

    await acts.refund(db, tenant, job_id, 1 * MC, "first")
    assert await left(db, tenant) == [], "what was spent last comes back first, and never ends"
    await acts.refund(db, tenant, job_id, 3 * MC, "second")
    assert await left(db, tenant) == [("refund", 1, 30), ("refund", 2, 100)]
    again = await acts.refund(db, tenant, job_id, 3 * MC, "second")
    assert again.replayed
    await acts.refund(db, tenant, job_id, 1 * MC, "third")

    assert await left(db, tenant) == [("refund", 1, 30), ("refund", 1, 30), ("refund", 2, 100)]
    assert await purse(db, tenant) == (5, 0, 0)


async def test_mj1_a_refund_of_what_ended_long_ago_lives_for_thirty_days(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    await acts.grant(db, tenant, 2 * MC, expires_at=in_days(5))
    job_id = (await acts.submit(db, tenant, price=2)).job_id
    await acts.work(db, job_id, charge_mc=2 * MC)
    acts.pass_time(superuser, tenant.org_id, 50 * DAY)

    await acts.refund(db, tenant, job_id, MC, "late")

    assert await left(db, tenant) == [("refund", 1, 30)]
    assert await purse(db, tenant) == (1, 0, 0)


async def test_mj1_credits_from_the_organizations_wallet_never_outlive_what_they_came_from(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0, grants="from_wallet")
    await acts.top_up(db, tenant, 3 * MC, "t1", expires_at=in_days(10))
    await acts.top_up(db, tenant, 5 * MC, "t2", kind="bonus", expires_at=in_days(40))
    await acts.top_up(db, tenant, 9 * MC, "t3")

    await acts.grant(db, tenant, 4 * MC)
    assert await left(db, tenant) == [("grant", 3, 10), ("grant", 1, 40)]
    assert await left(db, tenant, None) == [("bonus", 4, 40)]
    await acts.grant(db, tenant, 6 * MC, user="bob", expires_at=in_days(20))
    assert sorted(await left(db, tenant, "bob")) == [("grant", 2, 20), ("grant", 4, 20)]
    await acts.grant(db, tenant, 1 * MC, user="cyd")

    assert await left(db, tenant, "cyd") == []
    assert await purse(db, tenant, None) == (6, 0, 0)


async def test_mj1_lots_of_the_organizations_wallet_that_have_ended_pay_for_no_grant(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0, grants="from_wallet")
    await acts.top_up(db, tenant, 3 * MC, "t1", expires_at=in_days(10))
    await acts.top_up(db, tenant, 1 * MC, "t2")
    acts.pass_time(superuser, tenant.org_id, 11 * DAY)

    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.grant(db, tenant, 2 * MC)

    assert (caught.value.wallet, caught.value.balance_mc) == ("organization", MC)
    assert (await acts.grant(db, tenant, MC)).available_mc == MC
    assert await purse(db, tenant, None) == (0, 0, 0)


@pytest.mark.parametrize(("days", "why"), [(-1, "in the past"), (40_000, "within 100 years")])
async def test_mj1_credits_end_in_the_future_and_within_a_century(
    db: Database, tenant: Tenant, days: int, why: str
) -> None:
    for call in (
        acts.grant(db, tenant, MC, expires_at=in_days(days)),
        acts.top_up(db, tenant, MC, "t", expires_at=in_days(days)),
        acts.adjust(db, tenant, MC, "a", expires_at=in_days(days)),
    ):
        with pytest.raises(refusals.BadExpiry, match=why):
            await call


async def test_mj1_a_replay_is_a_replay_also_when_its_credits_have_ended_since(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    ends = datetime.now(UTC) + timedelta(seconds=0.5)
    first = await acts.grant(db, tenant, MC, ref="r", expires_at=ends)
    superuser.execute("SELECT pg_sleep(0.6)")

    again = await acts.grant(db, tenant, MC, ref="r", expires_at=ends)

    assert (again.replayed, again.transfer_id, again.available_mc) == (True, first.transfer_id, MC)
    assert await purse(db, tenant) == (0, 0, 0)


async def test_mj1_what_ends_when_is_shown_soonest_first_and_together(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=1)
    soon, late = in_days(3), in_days(9)
    for amount, ends in ((2, late), (1, soon), (4, soon)):
        await acts.grant(db, tenant, amount * MC, expires_at=ends)

    owner = (await acts.wallet(db, tenant)).id
    async with db.tenant_tx(tenant.org_id) as tx:
        found = await lots.list_endings(tx, owner)

    assert [(ending.amount_mc, ending.expires_at) for ending in found] == [(5 * MC, soon), (2 * MC, late)]


async def test_mj2_racing_jobs_never_draw_a_lot_twice(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)
    for days in range(1, 6):
        await acts.grant(db, tenant, 3 * MC, expires_at=in_days(days))

    answers = await acts.together([lambda: acts.submit(db, tenant, price=2) for _ in range(20)])

    assert sum(not isinstance(a, Exception) for a in answers) == 7
    assert all(isinstance(a, refusals.TooFewCredits) for a in answers if isinstance(a, Exception))
    assert await purse(db, tenant) == (1, 14, 0)
