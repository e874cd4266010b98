"""MJ3: a hold is settled exactly once, whoever arrives at the same moment."""

import random
from collections import Counter

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from limner.ledger import refusals
from tests import acts, tiers
from tests.conftest import MakeTenant, Tenant
from tests.tally import Tally

OVER = "UPDATE limner.job_queue SET claimable_at = clock_timestamp() WHERE job_id = %s"


@pytest.mark.parametrize("rounds", tiers.counts(50, 500, full=2_000))
async def test_mj3_finish_finish_cancel_and_reclaim_together_settle_once(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, rounds: int, tally: Tally
) -> None:
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=rounds)
    winners: Counter[str] = Counter()

    for _ in range(rounds):
        job_id = (await acts.submit(db, tenant)).job_id
        held = await acts.lease(db, job_id, lease_s=60)
        await acts.start(db, held)
        superuser.execute(OVER, [job_id])  # its lease is over: anybody may take the job now

        async def reclaim_and_fail(job_id: object = job_id) -> str:
            for again in await acts.claim(db, 1, owner="w2", lease_s=0.0):
                if again.job_id == job_id:
                    return await acts.finish(db, again, "failed")
            return "not mine"

        calls = [
            lambda held=held: acts.finish(db, held),
            lambda held=held: acts.finish(db, held, charge_mc=MC // 2),
            lambda job_id=job_id: acts.cancel(db, tenant, job_id),
            reclaim_and_fail,
        ]
        answers = await acts.together(calls, jitter_s=random.choice((0.002, 0.01, 0.03)))

        resolved = [a for a in answers if a in {"succeeded", "failed", "cancelled"}]
        assert len(resolved) == 1, answers
        assert all(isinstance(a, str | refusals.StaleLease) for a in answers), answers
        assert (await acts.job(db, tenant, job_id)).state == resolved[0]
        winners[resolved[0]] += 1

    resolutions = acts.count(
        superuser, "SELECT count(*) FROM limner.transfer WHERE org_id = %s AND hold_id IS NOT NULL", tenant.org_id
    )
    tally("MJ3", rounds=rounds, resolutions=resolutions, **winners)
    assert resolutions == rounds
    assert {"succeeded", "cancelled"} <= set(winners), f"one call always won, so nothing raced: {winners}"
    assert (await acts.wallet(db, tenant)).held_mc == 0
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj3_a_second_resolution_is_refused_by_the_table_itself(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    """Beneath the functions stands an index: not even the superuser, who may write, can settle a hold twice."""
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.work(db, job_id)

    with pytest.raises(psycopg.errors.UniqueViolation, match="one_resolution_per_hold"):
        superuser.execute(
            "INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc,"
            " hold_id, job_id) SELECT org_id, gen_random_uuid(), 'void', debit_wallet, 999, 0, 'revenue', 0, hold_id, job_id"
            " FROM limner.transfer WHERE hold_id = %s",
            [job_id],
        )
