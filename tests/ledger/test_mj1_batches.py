"""MJ1 in bulk: a batch of grants happens whole or not at all, once, and in nobody's way."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from limner.ledger import allowances, refusals
from limner.ledger.batches import Row
from limner.tenancy import apps, end_users, organizations
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.ledger.test_mj1_lots import in_days, left, purse

TRANSFERS = "SELECT count(*) FROM limner.transfer WHERE org_id = %s"
USERS = "SELECT count(*) FROM limner.end_user WHERE org_id = %s"


def rows(*given: tuple[str, int]) -> list[Row]:
    return [Row(user, amount * MC, "a gift") for user, amount in given]


async def test_mj1_a_thousand_rows_are_granted_in_their_order_and_again_only_said(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0, welcome_mc=MC)
    batch = [Row(f"u{n % 250}", (n + 1) * MC, "a gift") for n in range(1000)]

    done = await acts.grant_batch(db, tenant, batch, ref="b")
    before = acts.count(superuser, TRANSFERS, tenant.org_id)
    again = await acts.grant_batch(db, tenant, batch, ref="b")

    assert [grant.available_mc for grant in done[:2]] == [2 * MC, 3 * MC]
    assert done[250].available_mc == (1 + 1 + 251) * MC
    assert len({grant.transfer_id for grant in done}) == 1000
    assert [(g.replayed, g.transfer_id, g.available_mc) for g in again] == [
        (True, g.transfer_id, g.available_mc) for g in done
    ]
    assert before == acts.count(superuser, TRANSFERS, tenant.org_id) == 1250
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_a_batch_with_bad_rows_grants_nothing_and_names_every_one(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=1)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await end_users.change(tx, await end_users.get(tx, tenant.app.id, "ann"), actor="test", is_active=False)
    yesterday = in_days(-1)
    batch = [
        Row("new", MC, "fine"), Row("ann", MC, "off"), Row("bob", MC, "late", "bonus", yesterday), Row("ann", MC, "", "grant", yesterday),
    ]  # fmt: skip

    with pytest.raises(refusals.BadRows) as caught:
        await acts.grant_batch(db, tenant, batch, ref="b")

    inactive, past = "this end user is deactivated", "credits cannot end in the past"
    assert caught.value.rows == [
        (1, "external_id", inactive), (2, "expires_at", past), (3, "external_id", inactive), (3, "expires_at", past),
    ]  # fmt: skip
    assert acts.count(superuser, USERS, tenant.org_id) == 1
    assert acts.count(superuser, TRANSFERS, tenant.org_id) == 1
    done = await acts.grant_batch(db, tenant, rows(("new", 1)), ref="b")
    assert not done[0].replayed, "a refused batch leaves its reference free"


@pytest.mark.parametrize("mode", ["from_wallet", "capped"])
async def test_mj1_a_batch_is_paid_for_whole_or_not_at_all(db: Database, make_tenant: MakeTenant, mode: str) -> None:
    capped = mode == "capped"
    tenant = await make_tenant(
        credits=0, wallet_credits=0 if capped else 10, grants="issue" if capped else "from_wallet",
        exposure_cap_mc=10 * MC if capped else None,
    )  # fmt: skip

    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.grant_batch(db, tenant, rows(("ann", 4), ("bob", 4), ("ann", 3)))
    assert (caught.value.balance_mc, caught.value.required_mc) == (10 * MC, 11 * MC)
    done = await acts.grant_batch(db, tenant, rows(("ann", 4), ("bob", 4), ("ann", 2)))

    assert [grant.available_mc for grant in done] == [4 * MC, 4 * MC, 6 * MC]
    assert await purse(db, tenant) == (6, 0, 0)


async def test_mj1_the_key_of_a_batch_is_no_other_requests(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)
    await acts.grant_batch(db, tenant, rows(("ann", 1), ("bob", 2)), ref="b")

    for other in (rows(("ann", 1)), rows(("ann", 1), ("bob", 3)), rows(("cyd", 1), ("bob", 2))):
        with pytest.raises(refusals.Reused):
            await acts.grant_batch(db, tenant, other, ref="b")


async def test_mj1_one_key_at_the_same_moment_for_two_batches_grants_one(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)
    for user in ("ann", "bob"):
        await acts.grant(db, tenant, MC, user=user)

    for number in range(15):
        answers = await acts.together(
            [partial(acts.grant_batch, db, tenant, rows((user, 1)), ref=f"b{number}") for user in ("ann", "bob")]
        )
        assert sorted(type(a).__name__ for a in answers) == ["Reused", "list"], answers


@pytest.mark.parametrize("mode", ["issue", "from_wallet"])
async def test_mj1_batches_grants_jobs_and_allowances_over_the_same_users_never_deadlock(
    db: Database, make_tenant: MakeTenant, mode: organizations.Grants
) -> None:
    """Batches name the users in any order, some of them new; allowances go by id, submits one at a time."""
    tenant = await make_tenant(credits=1000, wallet_credits=10_000, grants=mode, welcome_mc=MC)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await tx.execute("UPDATE limner.app SET monthly_mc = 1000 WHERE org_id = %s", [tenant.org_id])
    for n in (5, 3, 8, 1, 9, 2):
        await acts.grant(db, tenant, MC, user=f"u{n}")
    names = [f"u{n}" for n in range(10)]

    async def allow() -> allowances.Given:
        async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
            return await allowances.grant_to_users(tx, tenant.app.id, allowances.NOBODY, 100)

    for number in range(10):
        ways = [names, names[::-1], names[5:] + names[:5], [*names, f"new{number}"], [f"new{number}", *names[::-1]]]
        grants = [rows(*((name, 1) for name in way)) for way in ways]
        singles: list[Callable[[], Awaitable[Any]]] = [
            partial(acts.grant, db, tenant, MC, user=f"new{number}"), partial(acts.submit, db, tenant, user="u5"), allow,
        ]  # fmt: skip
        answers = await acts.together([*(partial(acts.grant_batch, db, tenant, batch) for batch in grants), *singles])
        assert [a for a in answers if isinstance(a, Exception)] == []

    assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_copies_of_one_batch_grant_once(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)
    batch = rows(("ann", 1), ("bob", 2), ("ann", 3))

    answers = await acts.together([partial(acts.grant_batch, db, tenant, batch, ref="b")] * 10)

    assert sorted(a[0].replayed for a in answers) == [False] + [True] * 9
    assert len({tuple(g.transfer_id for g in a) for a in answers}) == 1
    assert await purse(db, tenant) == (4, 0, 0)


# allowances


async def _allow(db: Database, tenant: Tenant, limit: int = 100) -> list[allowances.Given]:
    found = []
    after = allowances.NOBODY
    while True:
        async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
            given = await allowances.grant_to_users(tx, tenant.app.id, after, limit)
        found.append(given)
        if given.last_id is None or given.short:
            return found
        after = given.last_id


async def _monthly(db: Database, tenant: Tenant, amount_mc: int) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await tx.execute("UPDATE limner.app SET monthly_mc = %s WHERE org_id = %s", [amount_mc, tenant.org_id])
        await tx.execute("UPDATE limner.organization SET monthly_mc = %s WHERE org_id = %s", [amount_mc, tenant.org_id])


def month_ends() -> datetime:
    now = datetime.now(UTC)
    return (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


async def test_mj1_an_allowance_comes_once_a_month_and_ends_with_it(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)
    for n in range(7):
        await acts.grant(db, tenant, MC, user=f"u{n}")
    await _monthly(db, tenant, 5 * MC)

    first, again = await _allow(db, tenant, 3), await _allow(db, tenant, 3)
    racing = await acts.together([lambda: _allow(db, tenant)] * 5)
    await acts.submit(db, tenant, user="new")

    assert (sum(g.granted for g in first), sum(g.granted for g in again)) == (7, 0)
    assert sum(g.granted for run in racing for g in run) == 0
    assert (await acts.wallet(db, tenant, "new")).available_mc == 4 * MC
    for user in ("u0", "u6", "new"):
        [lot] = await acts.open_lots(db, tenant, user)
        assert (lot.kind, lot.expires_at) == ("allowance", month_ends())
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        assert [await allowances.grant_own(tx), await allowances.grant_own(tx)] == [True, False]
    assert await left(db, tenant, None) == [
        ("allowance", 5, round((month_ends() - datetime.now(UTC)) / timedelta(days=1)))
    ]
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_racing_allowances_are_given_once(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0)
    for n in range(7):
        await acts.grant(db, tenant, MC, user=f"u{n}")
    await _monthly(db, tenant, 5 * MC)

    racing = await acts.together([lambda: _allow(db, tenant)] * 8)

    assert [r for r in racing if isinstance(r, Exception)] == []
    assert sum(g.granted for run in racing for g in run) == 7
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.parametrize("mode", ["from_wallet", "capped"])
async def test_mj1_allowances_stop_where_the_money_does_and_go_on_when_there_is_more(
    db: Database, make_tenant: MakeTenant, mode: str
) -> None:
    capped = mode == "capped"
    tenant = await make_tenant(
        credits=0, wallet_credits=0 if capped else 15, grants="issue" if capped else "from_wallet",
        exposure_cap_mc=15 * MC if capped else None,
    )  # fmt: skip
    for n in range(4):
        await acts.grant(db, tenant, MC, user=f"u{n}")
    await _monthly(db, tenant, 5 * MC)

    assert [(g.granted, g.short) for g in await _allow(db, tenant)] == [(2, True)]
    if capped:
        async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            await organizations.change(tx, actor="test", exposure_cap_mc=100 * MC)
    else:
        await acts.top_up(db, tenant, 10 * MC, "more")

    assert sum(g.granted for g in await _allow(db, tenant)) == 2
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_nobody_gets_an_allowance_from_what_is_switched_off(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=1)
    await acts.grant(db, tenant, MC, user="bob")
    await _monthly(db, tenant, 5 * MC)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await end_users.change(tx, await end_users.get(tx, tenant.app.id, "ann"), actor="test", is_active=False)
        await apps.change(tx, tenant.app, actor="test", is_enabled=False)
    assert sum(g.granted for g in await _allow(db, tenant)) == 0
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await apps.change(tx, tenant.app, actor="test", is_enabled=True)

    assert sum(g.granted for g in await _allow(db, tenant)) == 1
    assert (await acts.wallet(db, tenant)).available_mc == MC
