"""Where credits come from: issuance under a cap, the organization's wallet, and a welcome once."""

from functools import partial

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from limner.ledger import refusals, wallets
from limner.tenancy import end_users, organizations
from tests import acts
from tests.conftest import MakeTenant


async def test_mj1_the_welcome_grant_is_made_once_by_twenty_concurrent_first_requests(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """The prototype finds, then creates, then writes the ledger: three chances to be interrupted or overtaken."""
    for _ in range(5):
        tenant = await make_tenant(credits=0, welcome_mc=30 * MC)
        submits = [partial(acts.submit, db, tenant, user="new") for _ in range(10)]
        grants = [partial(acts.grant, db, tenant, MC, user="new") for _ in range(10)]

        answers = await acts.together([*submits, *grants])

        assert not [a for a in answers if isinstance(a, Exception)]
        users = "SELECT count(*) FROM limner.end_user WHERE org_id = %s"
        welcomes = "SELECT count(*) FROM limner.transfer WHERE org_id = %s AND ref LIKE 'welcome:%%'"
        assert acts.count(superuser, users, tenant.org_id) == 1
        assert acts.count(superuser, welcomes, tenant.org_id) == 1
        wallet = await acts.wallet(db, tenant, "new")
        assert (wallet.available_mc, wallet.held_mc) == (30 * MC, 10 * MC)
        assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_user_wallet_and_welcome_come_in_one_commit_or_not_at_all(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0, welcome_mc=5 * MC)

    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.submit(db, tenant, user="new", price=6)

    assert (caught.value.balance_mc, caught.value.required_mc) == (5 * MC, 6 * MC)
    for table in ("end_user", "transfer"):
        assert acts.count(superuser, f"SELECT count(*) FROM limner.{table} WHERE org_id = %s", tenant.org_id) == 0
    await acts.submit(db, tenant, user="new", price=5)
    assert (await acts.wallet(db, tenant, "new")).available_mc == 0


async def test_a_grant_from_the_organizations_wallet_moves_its_credits_and_stops_when_it_is_empty(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0, wallet_credits=10, grants="from_wallet")

    await acts.grant(db, tenant, 7 * MC)
    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.grant(db, tenant, 4 * MC)

    assert (caught.value.wallet, caught.value.balance_mc, caught.value.required_mc) == ("organization", 3 * MC, 4 * MC)
    assert (await acts.wallet(db, tenant, None)).available_mc == 3 * MC
    assert (await acts.wallet(db, tenant)).available_mc == 7 * MC
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj2_racing_grants_never_overdraw_the_organizations_wallet(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0, wallet_credits=10, grants="from_wallet")

    answers = await acts.together([partial(acts.grant, db, tenant, MC, user=f"u{n % 7}") for n in range(40)])

    assert sum(isinstance(a, wallets.Grant) for a in answers) == 10
    assert sum(isinstance(a, refusals.TooFewCredits) for a in answers) == 30
    assert (await acts.wallet(db, tenant, None)).available_mc == 0
    assert await acts.books(db, tenant.org_id) == {}


async def test_a_welcome_out_of_the_organizations_wallet_is_refused_when_it_is_empty(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0, wallet_credits=1, welcome_mc=2 * MC, grants="from_wallet")

    with pytest.raises(refusals.TooFewCredits) as caught:
        await acts.submit(db, tenant, user="new")

    assert caught.value.wallet == "organization"


async def test_issued_grants_stop_at_the_exposure_cap_however_many_race(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0, exposure_cap_mc=10 * MC)

    answers = await acts.together([partial(acts.grant, db, tenant, 3 * MC, user=f"u{n}") for n in range(12)])

    refused = [a for a in answers if isinstance(a, refusals.TooFewCredits)]
    assert len(refused) == 9
    assert {(e.wallet, e.balance_mc) for e in refused} == {("issuance", MC)}
    assert await acts.books(db, tenant.org_id) == {}


async def test_the_cap_counts_what_is_outstanding_not_what_was_ever_issued(
    db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0, exposure_cap_mc=10 * MC)
    await acts.grant(db, tenant, 10 * MC)
    job_id = (await acts.submit(db, tenant, price=4)).job_id

    with pytest.raises(refusals.TooFewCredits):
        await acts.grant(db, tenant, 1)  # held credits are still outstanding
    await acts.work(db, job_id, charge_mc=4 * MC)

    assert (await acts.grant(db, tenant, 4 * MC)).available_mc == 10 * MC


@pytest.mark.parametrize("mode", ["from_wallet", "capped"])
async def test_grants_of_every_kind_to_one_user_at_once_never_deadlock(
    db: Database, make_tenant: MakeTenant, mode: str
) -> None:
    """With and without a reference they lock the source and the user's wallet; in one order, or they would wait for each other."""
    capped = mode == "capped"
    tenant = await make_tenant(
        credits=0,
        wallet_credits=1000,
        grants="issue" if capped else "from_wallet",
        exposure_cap_mc=10**9 if capped else None,
    )
    await acts.grant(db, tenant, MC)

    for number in range(15):
        calls = [partial(acts.grant, db, tenant, MC, ref=f"{number}-{n}" if n % 2 else None) for n in range(12)]
        answers = await acts.together(calls)
        assert [a for a in answers if isinstance(a, Exception)] == []

    assert (await acts.wallet(db, tenant)).available_mc == 181 * MC


@pytest.mark.parametrize("amount", [0, -1, 10**15 + 1, 2**62])
async def test_a_grant_is_more_than_nothing_and_less_than_absurd(
    db: Database, make_tenant: MakeTenant, amount: int
) -> None:
    tenant = await make_tenant(credits=1)

    with pytest.raises(refusals.BadAmount):
        await acts.grant(db, tenant, amount)
    with pytest.raises(refusals.BadAmount):
        await acts.top_up(db, tenant, amount, "r")


async def test_a_wallet_that_would_overflow_refuses_instead_of_wrapping(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=1)
    superuser.execute(
        "UPDATE limner.wallet SET available_mc = 9223372036854775807 WHERE org_id = %s AND id <> org_id",
        [tenant.org_id],
    )

    with pytest.raises(refusals.BadAmount, match="too large"):
        await acts.grant(db, tenant, MC)


async def test_a_deactivated_user_gets_nothing_and_spends_nothing(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant()
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        user = await end_users.get(tx, tenant.app.id, "ann")
        await end_users.change(tx, user, actor="test", is_active=False)

    with pytest.raises(refusals.Inactive):
        await acts.submit(db, tenant)
    with pytest.raises(refusals.Inactive):
        await acts.grant(db, tenant, MC)
    assert (await acts.wallet(db, tenant)).available_mc == 1000 * MC


async def test_a_change_of_mode_holds_from_the_next_grant(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=1, wallet_credits=2)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await organizations.change(tx, actor="test", grants="from_wallet")

    await acts.grant(db, tenant, MC)

    assert (await acts.wallet(db, tenant, None)).available_mc == MC
    assert await acts.books(db, tenant.org_id) == {}
