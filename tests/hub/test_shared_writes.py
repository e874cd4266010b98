"""Starts, intents and finishes that share a commit: each is its own all the same, and none waits for another tenant."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import runs
from limner.hub.providers.base import CallClass
from limner.hub.sharing import SharedWrites
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import refusals
from tests import acts
from tests.alone import superuser_conninfo
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.doubles import Scripted, assert_settled, text
from tests.hub.fixtures import Open, db_alone, open_a_shop, own_pool, own_store, server_alone, superuser_alone
from tests.hub.looping import closed, until, working

__all__ = ["db_alone", "open_a_shop", "own_pool", "own_store", "server_alone", "superuser_alone"]


async def leased(db: Database, *tenants: Tenant) -> list[runs.Lease]:
    """A claimed job of each."""
    return [await acts.lease(db, (await acts.submit(db, tenant)).job_id, lease_s=60) for tenant in tenants]


def row(verb: str, lease: runs.Lease, place: int = 0, **args: Any) -> tuple[str, dict[str, Any]]:
    facts = {"event": ids.new(), "transfer": ids.new(), **args}
    return verb, {"place": place, "org": lease.org_id, "job": lease.job_id, "fence": lease.fence, **facts}


async def send(db: Database, *rows: tuple[str, dict[str, Any]]) -> dict[int, Any]:
    """One batch, signed for the organizations of its rows."""
    batch: dict[str, list[dict[str, Any]]] = {}
    for verb, facts in rows:
        batch.setdefault(verb, []).append(facts)
    async with db.shared_single({facts["org"] for _, facts in rows}, "limner_worker") as tx:
        return dict(await runs.work_many(tx, batch))


def success(charge_mc: int = MC) -> dict[str, Any]:
    usage = [{"kind": "image", "quantity": 1, "unit": "image"}]
    closing = runs.Closing("succeeded", charge_mc=charge_mc, outputs=[], provider="local", usage=usage)
    return runs.closing_args(closing)


async def test_jobs_of_many_organizations_live_through_shared_commits(
    shop: Open, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    shops = [await shop(Scripted(f"p{n}", *[text()] * 40)) for n in range(3)]
    made = [(here, await here.submit()) for here in shops for _ in range(40)]
    here = shops[0]
    here.resources.adapters.update({p.name: p for s in shops for p in s.providers})  # type: ignore[attr-defined]
    before = acts.count(superuser, "SELECT pg_current_xact_id()::text::bigint")

    async with working(here) as loop:
        for one, job_id in made:
            (job,) = await closed(one, job_id, timeout_s=30)
            assert (job.state, job.price_final_mc, job.runs) == ("succeeded", MC, 1)
        await until(lambda: loop.active == 0)

    commits = acts.count(superuser, "SELECT pg_current_xact_id()::text::bigint") - before
    assert commits < 3 * len(made), "start, intent and finish of 120 jobs took as many transactions: nothing was shared"
    for one, job_id in made:
        await assert_settled(one, job_id)
        assert [a["state"] for a in await one.attempts(job_id)] == ["done"]


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("call_class", [CallClass.A, CallClass.C])
async def test_mj5_a_batch_whose_answer_is_lost_changes_nothing(
    shop: Open, monkeypatch: pytest.MonkeyPatch, superuser: psycopg.Connection, lost: str, call_class: CallClass
) -> None:
    """Every shared commit fails, or commits and its answer is lost: the jobs end once, charged once."""
    acts.empty_queue(superuser)
    here = await shop(Scripted("only", *[text()] * 60, call_class=call_class))
    made = [await here.submit() for _ in range(20)]
    real = runs.work_many

    async def break_off(tx: Any, rows: Any) -> Any:
        if lost == "after":
            await real(tx, rows)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(runs, "work_many", break_off)
    async with working(here) as loop:
        for job_id in made:
            (job,) = await closed(here, job_id, timeout_s=30)
            assert (job.state, job.price_final_mc) == ("succeeded", MC)
        await until(lambda: loop.active == 0)

    assert len(here.providers[0].calls) == len(made)
    for job_id in made:
        await assert_settled(here, job_id)


async def test_mj7_a_stale_fence_in_a_batch_writes_nothing_and_stops_nobody(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    mine, theirs = await make_tenant(), await make_tenant()
    stale, fresh = await leased(db, mine, theirs)
    stale = runs.Lease(**{**{f: getattr(stale, f) for f in stale.__slots__}, "fence": stale.fence - 1})

    answers = await send(db, row("start", stale), row("start", fresh, 1), row("finish", stale, 2, **success()),
                         row("finish", fresh, 3, **success()))  # fmt: skip

    assert sorted(answers) == [1, 3]
    assert (await acts.job(db, theirs, fresh.job_id)).state == "succeeded"
    assert (await acts.job(db, mine, stale.job_id)).state == "queued"
    assert await acts.books(db, mine.org_id) == await acts.books(db, theirs.org_id) == {}


async def test_mj7_a_finish_beyond_the_hold_is_left_out_and_refused_alone(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    mine, theirs = await make_tenant(), await make_tenant()
    greedy, honest = await leased(db, mine, theirs)
    await send(db, row("start", greedy), row("start", honest))

    unheard = success() | {"usage": []}  # a charge without a record of what was consumed

    answers = await send(db, row("finish", honest, **success()), row("finish", greedy, 1, **success(MC + 1)))
    answers |= await send(db, row("finish", greedy, 2, **unheard))

    assert answers == {0: "succeeded"}
    assert (await acts.job(db, theirs, honest.job_id)).state == "succeeded"
    assert (await acts.job(db, mine, greedy.job_id)).state == "running"
    with pytest.raises(refusals.BadAmount, match="outside"):
        await acts.finish(db, greedy, charge_mc=MC + 1)
    assert await acts.finish(db, greedy) == "succeeded"


@pytest.mark.parametrize("held", ["limner.wallet", "limner.job_queue", "limner.job"])
async def test_a_row_that_somebody_holds_is_left_out_of_the_batch(
    db: Database, make_tenant: MakeTenant, server: Server, superuser: psycopg.Connection, held: str
) -> None:
    acts.empty_queue(superuser)
    busy, other = await make_tenant(), await make_tenant()
    waits, goes = await leased(db, busy, other)
    await send(db, row("start", waits), row("start", goes))
    with psycopg.connect(superuser_conninfo(server)) as holder:
        holder.execute(f"SELECT 1 FROM {held} WHERE org_id = %s FOR UPDATE", [busy.org_id])
        answers = await send(db, row("finish", waits, **success()), row("finish", goes, 1, **success()))

    assert answers == {1: "succeeded"}
    assert await acts.finish(db, waits) == "succeeded"
    assert await acts.books(db, busy.org_id) == {}


async def test_ta5_a_row_reaches_only_the_organization_of_its_context(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    mine, theirs = await make_tenant(), await make_tenant()
    (foreign,) = await leased(db, theirs)
    _, facts = row("start", foreign)

    async with db.shared_single([mine.org_id], "limner_worker") as tx:  # signed for mine, a row of theirs
        assert await runs.work_many(tx, {"start": [facts]}) == []
    async with db.shared_single([mine.org_id], "limner_worker") as tx:
        tx.ctx = str(tx.ctx).replace(str(mine.org_id), str(theirs.org_id))
        with pytest.raises(psycopg.Error, match="forged"):
            await runs.work_many(tx, {"start": [facts]})
    with pytest.raises(psycopg.Error, match="not something a worker does"):
        await send(db, row("grant", foreign))


async def test_whoever_asks_alone_hears_what_the_batch_did(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    shared = SharedWrites(db)
    (held,) = await leased(db, tenant)

    work, copy = await asyncio.gather(shared.start(held), shared.start(held))
    async with db.tenant_single(tenant.org_id, "limner_worker") as tx:
        again = await runs.start(tx, held)
    intent = await shared.intend(held, "main", "local", "m", "first")
    closing = runs.Closing("cancelled", "cancelled", "x")

    assert copy is None, "in one batch a job is started once"
    assert work == again
    assert intent is not None
    assert (intent.decision, intent.send_no) == ("send", 1)
    assert await shared.intend(held, "main", "local", "m", "first") is None
    assert await shared.finish(held, closing)
    assert not await shared.finish(held, closing)
    assert await shared.finish(held, closing, lingers=True) is False, "what this fence has ended has ended"
    async with db.tenant_single(tenant.org_id, "limner_worker") as tx:
        assert await runs.finish(tx, held, closing) == "already"


async def test_mj3_one_wallets_finishes_in_one_batch_are_counted_one_after_another(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=10)
    held = [await acts.lease(db, (await acts.submit(db, tenant, price=2)).job_id, lease_s=60) for _ in range(4)]
    await acts.grant(db, tenant, 2 * MC, expires_at=datetime(2031, 5, 1, tzinfo=UTC))
    drew = await acts.lease(db, (await acts.submit(db, tenant, price=2)).job_id, lease_s=60)
    for one in (*held, drew):
        await acts.start(db, one)
    failed = runs.closing_args(runs.Closing("failed", code="provider_down", message="It is down."))
    two = [{"kind": "image", "quantity": 1, "unit": "image"}, {"kind": "text", "quantity": 3, "unit": "token"}]

    answers = await send(
        db, row("finish", held[0], 0, **success(2 * MC)), row("finish", held[1], 1, **failed),
        row("finish", held[2], 2, **success(MC)), row("finish", held[2], 3, **success(MC)),
        row("finish", drew, 4, **success(MC)), row("finish", held[3], 5, **success(0) | {"usage": two}),
    )  # fmt: skip

    assert answers == {0: "succeeded", 1: "failed", 2: "succeeded", 5: "succeeded"}, "lots and copies go alone"
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == ((10 + 2 - 2 - 1 - 2) * MC, 2 * MC)
    assert acts.count(superuser, "SELECT count(*) FROM limner.usage_record WHERE org_id = %s", tenant.org_id) == 4
    assert acts.count(superuser, "SELECT count(*) FROM limner.leftover WHERE org_id = %s", tenant.org_id) == 1
    assert await acts.finish(db, drew) == "succeeded"
    assert await acts.books(db, tenant.org_id) == {}
