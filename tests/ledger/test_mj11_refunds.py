"""MJ11: refunds never exceed what was paid; replays do nothing."""

import pytest

from limner.db.pools import Database
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from tests import acts, tiers
from tests.conftest import MakeTenant, Tenant


@pytest.mark.parametrize("count", tiers.counts(50, 500, full=2_000))
async def test_mj11_a_hundred_concurrent_refunds_give_back_at_most_what_was_paid(
    db: Database, make_tenant: MakeTenant, count: int
) -> None:
    tenant = await make_tenant(credits=count * 10)

    for _ in range(count):
        job_id = (await acts.submit(db, tenant, price=10)).job_id
        await acts.work(db, job_id, charge_mc=9_100)
        before = (await acts.wallet(db, tenant)).available_mc
        answers = await acts.together(
            [lambda j=job_id, n=n: acts.refund(db, tenant, j, 300, f"{j}:{n}") for n in range(100)]  # type: ignore[misc]
        )

        given = [a for a in answers if not isinstance(a, Exception)]
        assert len(given) == 30, "30 x 300 fit into 9,100; one more would not"
        assert all(isinstance(a, refusals.BadAmount) for a in answers if isinstance(a, Exception))
        assert (await acts.job(db, tenant, job_id)).refunded_mc == 9_000
        assert (await acts.wallet(db, tenant)).available_mc == before + 9_000

    assert await acts.books(db, tenant.org_id) == {}


async def test_mj11_copies_of_one_refund_give_once(db: Database, tenant: Tenant) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.work(db, job_id)

    answers = await acts.together([lambda: acts.refund(db, tenant, job_id, 200, "one")] * 20)

    assert sorted(a.replayed for a in answers) == [False] + [True] * 19
    assert len({a.transfer_id for a in answers}) == 1
    assert (await acts.job(db, tenant, job_id)).refunded_mc == 200


async def test_mj11_one_reference_at_the_same_moment_for_two_jobs_refunds_one(db: Database, tenant: Tenant) -> None:
    paid = [(await acts.submit(db, tenant)).job_id for _ in range(2)]
    for job_id in paid:
        await acts.work(db, job_id)

    for number in range(20):
        answers = await acts.together([lambda j=j, n=number: acts.refund(db, tenant, j, 10, f"r{n}") for j in paid])  # type: ignore[misc]
        assert sorted(type(a).__name__ for a in answers) == ["Grant", "Reused"], answers


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
async def test_mj11_a_job_that_charged_nothing_gives_nothing_back(db: Database, tenant: Tenant, outcome: str) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.work(db, job_id, outcome)  # type: ignore[arg-type]

    with pytest.raises(refusals.BadAmount):
        await acts.refund(db, tenant, job_id, 1, "r")


async def test_mj11_an_open_job_an_absent_one_and_a_foreign_one_are_not_refunded(
    db: Database, make_tenant: MakeTenant, tenant: Tenant
) -> None:
    other = await make_tenant()
    still_open = (await acts.submit(db, tenant)).job_id
    foreign = (await acts.submit(db, other)).job_id
    await acts.work(db, foreign)

    with pytest.raises(refusals.BadAmount):
        await acts.refund(db, tenant, still_open, 1, "r1")
    for job_id in (foreign, ids.new()):
        with pytest.raises(refusals.Absent):
            await acts.refund(db, tenant, job_id, 1, "r2")
    assert (await acts.job(db, other, foreign)).refunded_mc == 0


@pytest.mark.parametrize("amount", [0, -1, -MC])
async def test_mj11_a_refund_is_more_than_nothing(db: Database, tenant: Tenant, amount: int) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.work(db, job_id)

    with pytest.raises(refusals.BadAmount):
        await acts.refund(db, tenant, job_id, amount, "r")
