"""A statement says in plain words why each credit moved, adds up to the balance, and can be read in pages."""

import pytest

from limner.db.pools import Database
from limner.hub import runs
from limner.kit.money import MC
from tests import acts
from tests.conftest import MakeTenant, Tenant


async def _a_full_life(db: Database, tenant: Tenant) -> None:
    """Every kind of line: part charged, failed, cancelled, refunded, granted."""
    part = (await acts.submit(db, tenant, price=4)).job_id
    await acts.work(db, part, charge_mc=1_500)
    await acts.work(db, (await acts.submit(db, tenant, price=2)).job_id, "failed")
    await acts.cancel(db, tenant, (await acts.submit(db, tenant, price=3)).job_id)
    whole = (await acts.submit(db, tenant)).job_id
    await acts.work(db, whole)
    await acts.refund(db, tenant, whole, 250, "r")
    await acts.grant(db, tenant, 2_000)


async def test_each_line_says_why_in_plain_words(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0, welcome_mc=10 * MC)
    await acts.grant(db, tenant, 5 * MC)
    await _a_full_life(db, tenant)

    lines = await acts.lines(db, tenant)

    assert [(line.change_mc, line.why) for line in reversed(lines)] == [
        (10_000, "Welcome credits"),
        (5_000, "a gift"),
        (-4_000, "Set aside 4 for a test/painter job"),
        (2_500, "test/painter delivered: 1.5 charged; 2.5 that was not needed came back"),
        (-2_000, "Set aside 2 for a test/painter job"),
        (2_000, "The test/painter job failed (failed): 2 came back, nothing was charged"),
        (-3_000, "Set aside 3 for a test/painter job"),
        (3_000, "The test/painter job was cancelled: 3 came back, nothing was charged"),
        (-1_000, "Set aside 1 for a test/painter job"),
        (0, "test/painter delivered: 1 charged"),
        (250, "Refund for a test/painter job: sorry"),
        (2_000, "a gift"),
    ]


async def test_the_changes_add_up_to_the_balance_line_by_line(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=20)
    await _a_full_life(db, tenant)

    lines = list(reversed(await acts.lines(db, tenant)))

    balance = 0
    for number, line in enumerate(lines, start=1):
        balance += line.change_mc
        assert (line.version, line.available_mc) == (number, balance)
    assert (await acts.wallet(db, tenant)).available_mc == balance


async def test_an_organizations_own_wallet_shows_both_ways(db: Database, make_tenant: MakeTenant) -> None:
    tenant = await make_tenant(credits=0, wallet_credits=10, grants="from_wallet")
    await acts.grant(db, tenant, 3 * MC)
    await acts.work(db, (await acts.submit(db, tenant, user=None)).job_id)

    assert [(line.kind, line.change_mc, line.why) for line in await acts.lines(db, tenant, None)] == [
        ("post", 0, "test/painter delivered: 1 charged"),
        ("hold", -1_000, "Set aside 1 for a test/painter job"),
        ("grant", -3_000, "Moved to an end user: a gift"),
        ("grant", 10_000, "test"),
    ]
    assert [(line.kind, line.change_mc, line.why) for line in await acts.lines(db, tenant)] == [
        ("grant", 3_000, "a gift")
    ]


@pytest.mark.parametrize("page", [1, 2, 5, 100])
async def test_pages_join_without_gap_or_overlap(db: Database, make_tenant: MakeTenant, page: int) -> None:
    tenant = await make_tenant(credits=20)
    await _a_full_life(db, tenant)
    whole = await acts.lines(db, tenant, limit=1000)

    pages, before = [], None
    while lines := await acts.lines(db, tenant, limit=page, before=before):
        assert len(lines) <= page
        pages += lines
        before = lines[-1].version

    assert pages == whole
    assert len(whole) == 11


async def test_a_failure_without_a_code_reads_like_one(db: Database, tenant: Tenant) -> None:
    held = await acts.lease(db, (await acts.submit(db, tenant)).job_id)
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        await runs.finish(tx, held, runs.Closing("failed"))

    assert (await acts.lines(db, tenant))[0].why == "The test/painter job failed: 1 came back, nothing was charged"


async def test_strangers_have_no_lines(db: Database, make_tenant: MakeTenant, tenant: Tenant) -> None:
    other = await make_tenant()
    async with db.tenant_tx(other.org_id) as tx:
        from_elsewhere = await tx.all("SELECT id FROM limner.transfer WHERE org_id = %s", [tenant.org_id])

    assert from_elsewhere == []
