"""MJ1 over time: the worker's duties expire, allow and close; a closed day that does not add up any more is found."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from limner.ledger import books, invariants, refusals
from limner.ledger.chores import LedgerChores
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.ledger.test_mj1_lots import in_days, left, purse

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
CLOSED = "SELECT count(*) FROM limner.book_day WHERE org_id = %s"


def date_back(superuser: psycopg.Connection, tenant: Tenant, days: float) -> None:
    """Let an organization's transfers be that much older, as only somebody with the disk in hand can."""
    with superuser.transaction():
        superuser.execute("ALTER TABLE limner.transfer DISABLE TRIGGER append_only")
        moved = "UPDATE limner.transfer SET created_at = created_at - %s WHERE org_id = %s"
        superuser.execute(moved, [timedelta(days=days), tenant.org_id])
        superuser.execute("ALTER TABLE limner.transfer ENABLE TRIGGER append_only")


async def test_mj1_the_duty_sweeps_what_has_ended_everywhere(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenants = [await make_tenant(credits=1) for _ in range(3)]
    for tenant in tenants:
        for user in ("ann", "bob"):
            await acts.grant(db, tenant, 2 * MC, user=user, expires_at=in_days(1))
        acts.pass_time(superuser, tenant.org_id, timedelta(days=2))

    done = await LedgerChores(db).expire_lots(LONG_AGO)
    again = await LedgerChores(db).expire_lots(LONG_AGO)

    assert (done.facts, again.facts) == ({"wallets": 6, "failed": 0}, {"wallets": 0, "failed": 0})
    for tenant in tenants:
        assert await left(db, tenant) == []
        assert await purse(db, tenant) == (1, 0, 0)
    stale = "SELECT count(*) FROM limner.wallet WHERE lots_end IS NOT NULL AND org_id = ANY (%s)"
    assert acts.count(superuser, stale, [tenant.org_id for tenant in tenants]) == 0


async def test_mj1_the_duty_passes_over_a_wallet_in_use(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=0)
    for user in ("ann", "bob"):
        await acts.grant(db, tenant, 2 * MC, user=user, expires_at=in_days(1))
    acts.pass_time(superuser, tenant.org_id, timedelta(days=2))
    busy = (await acts.wallet(db, tenant)).id

    with superuser.transaction():
        superuser.execute("SELECT 1 FROM limner.wallet WHERE id = %s FOR NO KEY UPDATE", [busy])
        assert await acts.expire(db, tenant) == 1

    assert await acts.expire(db, tenant) == 1


async def test_mj1_the_duty_gives_every_allowance_once_and_passes_over_who_cannot_pay(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    rich, poor = await make_tenant(credits=1), await make_tenant(credits=0, wallet_credits=1, grants="from_wallet")
    await acts.grant(db, poor, MC)
    for tenant in (rich, poor):
        async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            await tx.execute("UPDATE limner.app SET monthly_mc = 3000 WHERE org_id = %s", [tenant.org_id])
    async with db.tenant_tx(rich.org_id, "limner_operator") as tx:
        await tx.execute("UPDATE limner.organization SET monthly_mc = 9000 WHERE org_id = %s", [rich.org_id])

    first = await LedgerChores(db).grant_allowances(LONG_AGO)
    again = await LedgerChores(db).grant_allowances(LONG_AGO)

    assert (first.facts["failed"], again.facts) == (0, {"granted": 0, "failed": 0})
    assert [await purse(db, rich), await purse(db, rich, None), await purse(db, poor)] == [
        (4, 0, 0),
        (9, 0, 0),
        (1, 0, 0),
    ]
    superuser.execute("UPDATE limner.app SET monthly_mc = 0 WHERE monthly_mc > 0")
    superuser.execute("UPDATE limner.organization SET monthly_mc = 0 WHERE monthly_mc > 0")


async def test_mj1_the_duty_closes_days_once_after_the_turn_of_the_day(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    duties = LedgerChores(db)
    date_back(superuser, tenant, 3)

    done = await duties.close_books(LONG_AGO)
    count = acts.count(superuser, CLOSED, tenant.org_id)
    again = await duties.close_books(datetime.now(UTC))

    assert (done.facts["failed"], count) == (0, 1)
    assert again.facts == {"rows": 0, "failed": 0}
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_days_are_closed_in_order_with_every_kind_of_movement_in_its_book(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=5)
    date_back(superuser, tenant, 2)
    await acts.grant(db, tenant, 2 * MC, expires_at=in_days(1))
    job_id = (await acts.submit(db, tenant, price=3)).job_id
    await acts.work(db, job_id, charge_mc=2_500)
    await acts.refund(db, tenant, job_id, 500, "r")
    await acts.submit(db, tenant)
    await acts.grant(db, tenant, 1 * MC, expires_at=in_days(1))
    acts.pass_time(superuser, tenant.org_id, timedelta(days=2))
    await acts.expire(db, tenant)
    await acts.claw_back(db, tenant, 9 * MC, "c")
    await acts.grant(db, tenant, 1 * MC)
    date_back(superuser, tenant, 2)

    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        last = await books.last_complete_day(tx)
        made = await books.close(tx, last)
        again = await books.close(tx, last)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        days = [await books.list_day(tx, (datetime.now(UTC) - timedelta(days=n)).date()) for n in (4, 2)]

    assert (made, again) == (sum(map(len, days)), 0)
    assert [(s.book, s.kind, s.debit_mc, s.credit_mc, s.transfers) for s in days[0]] == [
        ("issuance", "grant", 5000, 0, 1)
    ]
    by_name = {(s.book, s.kind): (s.debit_mc, s.credit_mc) for s in days[1]}
    expired = by_name.pop(("breakage", "expire"))
    assert expired == (0, 1000)
    taken = by_name.pop(("issuance", "clawback"))
    owed = by_name.pop(("receivable", "clawback"))
    assert by_name == {
        ("issuance", "grant"): (4000, 0),
        ("revenue", "post"): (0, 2500),
        ("revenue", "refund"): (500, 0),
    }
    assert (taken, owed[1]) == ((0, 9000), 1000)
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj1_today_is_not_closed(db: Database, tenant: Tenant) -> None:
    with pytest.raises(refusals.BadAmount, match="ten minutes after it ended"):
        async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            await books.close(tx, datetime.now(UTC).date())


BREAKS = {
    "I12 lots add up, and the wallet holds what is left in them": [
        "UPDATE limner.lot SET remaining_mc = remaining_mc - 1 WHERE org_id = %s",
        "UPDATE limner.lot SET gone_mc = gone_mc + 1, remaining_mc = remaining_mc - 2 WHERE org_id = %s",
        "UPDATE limner.wallet SET lots_end = NULL WHERE org_id = %s",
        "UPDATE limner.wallet SET lots_end = lots_end + interval '1 s' WHERE org_id = %s",
        "UPDATE limner.lot_draw SET amount_mc = amount_mc - 1 WHERE org_id = %s",
        "UPDATE limner.lot_draw SET used_mc = 0 WHERE org_id = %s",
        "DELETE FROM limner.lot_draw WHERE org_id = %s",
        "UPDATE limner.job SET drew_lots = false WHERE org_id = %s",
        "UPDATE limner.lot SET wallet_id = org_id WHERE org_id = %s",
    ],
    "I13 a debt equals its transfers, and nothing is held back from it": [
        "UPDATE limner.wallet SET owed_mc = owed_mc + 1 WHERE org_id = %s",
        "UPDATE limner.wallet SET owed_mc = 0 WHERE org_id = %s AND owed_mc > 0",
    ],
    "I14 a closed day equals the sum of its transfers": [
        "UPDATE limner.book_day SET credit_mc = credit_mc + 1 WHERE org_id = %s",
        "UPDATE limner.book_day SET transfers = transfers + 1 WHERE org_id = %s",
        "DELETE FROM limner.book_day WHERE org_id = %s AND book = 'revenue'",
        "UPDATE limner.book_day SET kind = 'bonus' WHERE org_id = %s AND kind = 'grant'",
    ],
}


@pytest.mark.parametrize(
    ("invariant", "statement"), [(name, one) for name, several in BREAKS.items() for one in several]
)
async def test_mj1_each_new_invariant_finds_what_breaks_it(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, invariant: str, statement: str
) -> None:
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=0)
    job_id = (await acts.submit(db, tenant, price=0)).job_id
    await acts.work(db, job_id, charge_mc=0)
    await acts.grant(db, tenant, 6 * MC, expires_at=in_days(3))
    date_back(superuser, tenant, 2)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await books.close(tx, await books.last_complete_day(tx))
    await acts.submit(db, tenant, price=2)
    await acts.grant(db, tenant, MC, user="bob")
    await acts.claw_back(db, tenant, 2 * MC, "c", user="bob")
    assert await acts.books(db, tenant.org_id) == {}

    with superuser.transaction(force_rollback=True):
        superuser.execute("SET session_replication_role = replica")  # past the triggers
        assert superuser.execute(statement, [tenant.org_id]).rowcount > 0
        broken = superuser.execute("SELECT * FROM limner.check_invariants(%s) WHERE violations > 0", [tenant.org_id])
        assert invariant in {row[0] for row in broken}


async def test_mj1_the_minutes_check_sees_lots_debts_holds_refunds_and_usage(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    since = datetime.now(UTC)
    tenant = await make_tenant(credits=3)
    plain = (await acts.submit(db, tenant)).job_id
    await acts.work(db, plain)
    await acts.grant(db, tenant, 6 * MC, expires_at=in_days(3))
    done = (await acts.submit(db, tenant, price=2)).job_id
    await acts.work(db, done, charge_mc=2 * MC)
    await acts.refund(db, tenant, done, MC, "r")
    await acts.submit(db, tenant, price=1)
    await acts.grant(db, tenant, MC, user="bob")
    await acts.claw_back(db, tenant, 2 * MC, "c", user="bob")

    def found() -> int:
        return acts.count(superuser, "SELECT violations FROM limner.check_changes(%s)", since)

    async with db.system_tx("limner_audit", "a test checks the books") as tx:
        clean, checked, _ = await invariants.check_changes(tx, since)
    assert (clean, checked > 0) == (0, True)
    for statement in (
        "UPDATE limner.wallet SET held_mc = held_mc + 1 WHERE org_id = %s AND held_mc > 0",
        "UPDATE limner.wallet SET lots_end = NULL WHERE org_id = %s AND lots_end IS NOT NULL",
        "UPDATE limner.wallet SET owed_mc = owed_mc + 1 WHERE org_id = %s AND owed_mc > 0",
        "UPDATE limner.job SET refunded_mc = 0 WHERE org_id = %s AND refunded_mc > 0",
        "UPDATE limner.usage_record SET price_mc = price_mc + 1 WHERE org_id = %s",
        "UPDATE limner.lot_draw SET used_mc = 0 WHERE org_id = %s AND used_mc > 0",
        "UPDATE limner.job SET drew_lots = NOT drew_lots WHERE org_id = %s",
    ):
        with superuser.transaction(force_rollback=True):
            superuser.execute("SET session_replication_role = replica")
            assert superuser.execute(statement, [tenant.org_id]).rowcount > 0, statement
            assert found() > 0, statement
