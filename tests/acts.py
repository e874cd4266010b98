"""What tests do to limner, in its own verbs: submit, lease, work, close, and look into the books."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from limner.db.pools import Database
from limner.hub import jobs, runs
from limner.hub.submission import ROUTE
from limner.kit import crypto, ids
from limner.kit.money import MC
from limner.ledger import batches, corrections, invariants, lots, statements, wallets
from limner.tenancy import end_users
from tests.conftest import Tenant

MODEL_ID = ids.new()
LEASE_S = 1.0
RELAYED_WITHIN_S = 20.0


def request(
    tenant: Tenant, *, price: int = 1, key: str | None = None, user: str | None = "ann", body: str = "a hare",
    app_id: UUID | None = None, priority: int = 50, deadline_s: int = 3600, max_runs: int = 3, route: str = ROUTE,
    run_at: datetime | None = None,
) -> jobs.Submission:  # fmt: skip
    """A parsed request worth `price`; the same `body` hashes to the same request."""
    return jobs.Submission(
        app_id=app_id or tenant.app.id, external_id=user, route=route, model_id=MODEL_ID, model="test/painter", kind="image",
        unit_price_mc=price * MC, hold_mc=price * MC, priority=priority, idempotency_key=key,
        request_hash=crypto.sha256(body.encode()), input={"prompt": body}, wait_s=5, deadline_s=deadline_s, max_runs=max_runs,
        run_at=run_at,
    )  # fmt: skip


async def submit(db: Database, tenant: Tenant, *, job_id: UUID | None = None, **changes: Any) -> jobs.Submitted:
    async with db.tenant_single(tenant.org_id) as tx:
        return await jobs.submit(tx, job_id or ids.new(), request(tenant, **changes), again=job_id is not None)


async def claim(db: Database, limit: int = 1, *, owner: str = "w1", lease_s: float = LEASE_S) -> list[runs.Lease]:
    async with db.system_tx("limner_dispatch", "a test claims") as tx:
        return await runs.claim(tx, owner, limit, lease_s)


async def lease(db: Database, job_id: UUID, *, owner: str = "w1", lease_s: float = LEASE_S) -> runs.Lease:
    """Claim until this job is the one; it must be claimable by now."""
    for _ in range(200):
        for found in await claim(db, 1, owner=owner, lease_s=lease_s):
            if found.job_id == job_id:
                return found
    raise AssertionError(f"job {job_id} cannot be claimed")


async def start(db: Database, held: runs.Lease) -> runs.Work:
    async with db.tenant_tx(held.org_id, "limner_worker") as tx:
        return await runs.start(tx, held)


async def finish(
    db: Database, held: runs.Lease, outcome: runs.Outcome = "succeeded", *, charge_mc: int | None = None
) -> str:
    """Close a started job: by default with success, charged one credit."""
    won = outcome == "succeeded"
    charge = (MC if charge_mc is None else charge_mc) if won else 0
    usage = [{"kind": "image", "quantity": 1, "unit": "image", "cost_micro_usd": 10}] if won else None
    async with db.tenant_tx(held.org_id, "limner_worker") as tx:
        closing = runs.Closing(outcome, charge_mc=charge, outputs=[] if won else None, provider="local",
                               code=None if won else outcome, usage=usage)  # fmt: skip
        return await runs.finish(tx, held, closing)


async def work(db: Database, job_id: UUID, outcome: runs.Outcome = "succeeded", **changes: Any) -> runs.Lease:
    """Take one job from queued to its end."""
    held = await lease(db, job_id)
    await start(db, held)
    await finish(db, held, outcome, **changes)
    return held


async def cancel(db: Database, tenant: Tenant, job_id: UUID) -> str:
    async with db.tenant_single(tenant.org_id) as tx:
        return await jobs.cancel(tx, tenant.app.id, job_id)


async def job(db: Database, tenant: Tenant, job_id: UUID) -> jobs.Job:
    async with db.tenant_tx(tenant.org_id) as tx:
        return await jobs.get(tx, tenant.app.id, job_id)


async def grant(
    db: Database, tenant: Tenant, amount_mc: int, *, user: str = "ann", ref: str | None = None, body: str = "g",
    app_id: UUID | None = None, kind: wallets.Kind = "grant", expires_at: datetime | None = None,
) -> wallets.Grant:  # fmt: skip
    async with db.tenant_single(tenant.org_id) as tx:
        return await wallets.grant(tx, app_id or tenant.app.id, user, amount_mc, "a gift", ref=ref,
                                   request_hash=crypto.sha256(body.encode()) if ref else None, kind=kind,
                                   expires_at=expires_at)  # fmt: skip


async def grant_batch(
    db: Database, tenant: Tenant, rows: Sequence[batches.Row], *, ref: str | None = None
) -> list[wallets.Grant]:
    async with db.tenant_single(tenant.org_id) as tx:
        return await batches.grant(tx, tenant.app.id, rows, ref=ref, request_hash=crypto.sha256(repr(rows).encode()))


async def adjust(
    db: Database, tenant: Tenant, amount_mc: int, ref: str, user: str | None = "ann", **more: Any
) -> wallets.Grant:
    owner = (await wallet(db, tenant, user)).id
    async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
        return await corrections.adjust(tx, owner, amount_mc, "counted again", ref=ref, **more)


async def claw_back(
    db: Database, tenant: Tenant, amount_mc: int, ref: str, user: str | None = "ann"
) -> corrections.Clawback:
    owner = (await wallet(db, tenant, user)).id
    async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
        return await corrections.claw_back(tx, owner, amount_mc, "the payment was reversed", ref=ref)


async def expire(db: Database, tenant: Tenant) -> int:
    """Sweep what has ended."""
    async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
        return await lots.expire(tx, 1000)


async def open_lots(db: Database, tenant: Tenant, user: str | None = "ann") -> list[lots.Lot]:
    owner = (await wallet(db, tenant, user)).id
    async with db.tenant_tx(tenant.org_id) as tx:
        return await lots.list_open(tx, owner)


def pass_time(superuser: psycopg.Connection, org_id: UUID, by: timedelta) -> None:
    """Let an organization's lots grow older: the database's clock cannot be moved, so their ends are."""
    superuser.execute("UPDATE limner.lot SET expires_at = expires_at - %s WHERE org_id = %s", [by, org_id])
    superuser.execute("UPDATE limner.wallet SET lots_end = lots_end - %s WHERE org_id = %s", [by, org_id])


async def refund(db: Database, tenant: Tenant, job_id: UUID, amount_mc: int, ref: str) -> wallets.Grant:
    async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
        return await wallets.refund(tx, job_id, amount_mc, "sorry", ref=ref)


async def top_up(db: Database, tenant: Tenant, amount_mc: int, ref: str, **more: Any) -> wallets.Grant:
    async with db.tenant_single(tenant.org_id, "limner_operator") as tx:
        return await wallets.top_up(tx, amount_mc, "bought", ref=ref, **more)


async def wallet(db: Database, tenant: Tenant, user: str | None = "ann") -> wallets.Wallet:
    async with db.tenant_tx(tenant.org_id) as tx:
        owner = tenant.org_id if user is None else (await end_users.get(tx, tenant.app.id, user)).id
        return await wallets.get(tx, owner)


async def lines(db: Database, tenant: Tenant, user: str | None = "ann", **paging: Any) -> list[statements.Line]:
    async with db.tenant_tx(tenant.org_id) as tx:
        owner = tenant.org_id if user is None else (await end_users.get(tx, tenant.app.id, user)).id
        return await statements.list_lines(tx, owner, **paging)


async def books(db: Database, org_id: UUID) -> dict[str, str | None]:
    """The invariants that are broken, each with an example. {} is what every test wants."""
    async with db.system_tx("limner_audit", "a test checks the books") as tx:
        found = await invariants.check_all(tx, org_id)
    assert len(found) == 15
    return {f.invariant: f.example for f in found if f.violations}


async def together(calls: Sequence[Callable[[], Awaitable[Any]]], *, jitter_s: float = 0) -> list[Any]:
    """Start all calls at the same moment (give or take); what each answered or raised, in order."""
    gate = asyncio.Event()

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        await gate.wait()
        if jitter_s:
            await asyncio.sleep(random.uniform(0, jitter_s))
        return await call()

    tasks = [asyncio.create_task(one(call)) for call in calls]
    await asyncio.sleep(0)
    gate.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def count(conn: psycopg.Connection, query: str, *params: Any) -> int:
    """The single number of a query."""
    row = conn.execute(query, params).fetchone()
    assert row is not None
    return int(row[0])


def lost_and_doubled(conn: psycopg.Connection, accepted: Iterable[str]) -> dict[str, int]:
    """Of the jobs that were acknowledged: how many are not there or not closed, and how many were settled more than once."""
    query = (
        "SELECT count(*) FILTER (WHERE j.finished_at IS NULL) AS lost,"
        " count(*) FILTER (WHERE (SELECT count(*) FROM limner.transfer x WHERE x.hold_id = a.id) > 1) AS doubled"
        " FROM unnest(%s::uuid[]) a (id) LEFT JOIN limner.job j ON j.id = a.id"
    )
    row = conn.execute(query, [list(accepted)]).fetchone()
    assert row is not None
    return {"lost": int(row[0]), "doubled": int(row[1])}


def end_sessions(superuser: psycopg.Connection) -> None:
    """End the other sessions in this database that have no transaction open: what each has read is counted when it has ended,
    and what this one did is counted at once."""
    superuser.execute("SELECT pg_stat_force_next_flush()")
    superuser.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        " AND state IS DISTINCT FROM 'idle in transaction'"
    )


def empty_queue(superuser: psycopg.Connection) -> None:
    """Take every open job of earlier tests out of claimers' sight for a day: tests of the order need the queue."""
    superuser.execute(
        "UPDATE limner.job_queue SET phase = 'deferred', claimable_at = clock_timestamp() + interval '1 day',"
        " deadline_at = clock_timestamp() + interval '2 days'"
    )


async def relay(db: Database) -> None:
    """Every event that is committed by now takes its place, once all that was under way in the server has ended, PostgreSQL's own too."""
    until: int | None = None
    async with asyncio.timeout(RELAYED_WITHIN_S):
        while True:
            async with db.system_tx("limner_dispatch", "a test relays") as tx:
                now = await tx.get(
                    "SELECT pg_snapshot_xmin(s)::text::bigint AS ended, pg_snapshot_xmax(s)::text::bigint AS begun"
                    " FROM (SELECT pg_current_snapshot() AS s) x"
                )
                while (await tx.get("SELECT placed FROM limner.relay_events(2000)"))["placed"]:
                    pass
            until = now["begun"] if until is None else until
            if now["ended"] >= until:
                return
            await asyncio.sleep(0.01)
