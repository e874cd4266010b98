"""No statement of a job's life reads a large table from end to end, however much has gathered in it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Address, Database
from limner.events import deliveries, endpoints, log
from limner.hub import batch_receipts, batches, catalog, jobs, queue, runs
from limner.kit import crypto, ids
from limner.kit.crypto import RootKey, Sealer
from limner.kit.money import MC
from limner.ledger import invariants
from tests import acts
from tests.alone import db_alone, server_alone, superuser_alone, superuser_conninfo
from tests.conftest import ROLES, MakeTenant, Server, Tenant, tenant_of

__all__ = ["db_alone", "server_alone", "superuser_alone"]

LARGE = (
    "job", "job_queue", "transfer", "wallet", "event", "usage_record", "provider_call", "end_user", "webhook_endpoint",
    "webhook_delivery", "webhook_attempt", "batch", "batch_item",
)  # fmt: skip
SCHEMA = {"type": "object", "additionalProperties": False, "properties": {}}
READ = """
SELECT t.relname, coalesce(t.seq_tup_read, 0) + greatest(t.idx_tup_fetch, sum(i.idx_tup_read)::bigint, 0)
  FROM pg_stat_user_tables t JOIN pg_stat_user_indexes i USING (relid) WHERE t.schemaname = 'limner' AND t.relname = ANY (%s)
 GROUP BY t.relid, t.relname, t.seq_tup_read, t.idx_tup_fetch
"""
FEW = 60
"""Rows of a table, index entries among them, that a job's life may read, where the organization has thousands."""
SCANS = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE schemaname = 'limner' AND relname = ANY (%s)"


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="others")
async def planted_others(server: Server, db: Database) -> AsyncIterator[Tenant]:
    """Some thousand rows in every table, of one tenant."""
    with psycopg.connect(superuser_conninfo(server), autocommit=True) as superuser:
        other = await tenant_of(db, credits=100_000)
        await _plant(db, superuser, other)
        # a small table is read whole because that is cheap: here it is read whole only where no index would do
        name = superuser.info.dbname
        superuser.execute(f"ALTER DATABASE {name} SET enable_seqscan = off")
        # plans for whatever values: those for the first ones are better than what a session keeps
        superuser.execute(f"ALTER DATABASE {name} SET plan_cache_mode = force_generic_plan")
        superuser.execute("ANALYZE")
        # what sums up the pages of transfer_recent beside the tests reads them by the same means, and is counted
        superuser.execute("ALTER TABLE limner.transfer SET (autovacuum_enabled = off)")
    yield other
    with psycopg.connect(superuser_conninfo(server), autocommit=True) as superuser:
        superuser.execute(f"ALTER DATABASE {name} RESET enable_seqscan")
        superuser.execute(f"ALTER DATABASE {name} RESET plan_cache_mode")
        superuser.execute("ALTER TABLE limner.transfer RESET (autovacuum_enabled)")


@pytest_asyncio.fixture
async def crowd(make_tenant: MakeTenant, others: Tenant, superuser: psycopg.Connection) -> AsyncIterator[Tenant]:
    """A tenant among them."""
    yield await make_tenant(credits=10_000, wallet_credits=10_000)
    acts.empty_queue(superuser)


async def _plant(db: Database, superuser: psycopg.Connection, other: Tenant) -> None:
    for n in range(40):
        rows = [(other.org_id, ids.new(), acts.request(other, key=f"k{n}-{m}")) for m in range(50)]
        async with db.shared_single([other.org_id]) as tx:
            assert len(await jobs.submit_many(tx, rows)) == 50
    for _ in range(10):
        for held in await acts.claim(db, 60, lease_s=600):
            await acts.start(db, held)
            async with db.tenant_tx(held.org_id, "limner_worker") as tx:
                await runs.intend(tx, held, "main", "local", "m", "first")
            await acts.finish(db, held)
    superuser.execute(
        "WITH u AS (INSERT INTO limner.end_user (org_id, id, app_id, external_id) SELECT %s, gen_random_uuid(), %s, 'planted-' || n"
        " FROM generate_series(1, 3000) n RETURNING org_id, id)"
        " INSERT INTO limner.wallet (org_id, id, owner) SELECT org_id, id, 'end_user' FROM u",
        [other.org_id, other.app.id],
    )
    endpoint = ids.new()
    superuser.execute(
        "INSERT INTO limner.webhook_endpoint (org_id, id, app_id, kind, url, secret, turn_at)"
        " SELECT %s, CASE n WHEN 0 THEN %s ELSE gen_random_uuid() END, %s, 'extra', 'https://hooks.example.com/' || n, '\\x00', now()"
        " FROM generate_series(0, 500) n",
        [other.org_id, endpoint, other.app.id],
    )
    superuser.execute(
        "INSERT INTO limner.webhook_delivery (org_id, id, endpoint_id, event_id) SELECT org_id, gen_random_uuid(), %s, id"
        " FROM limner.event WHERE org_id = %s",
        [endpoint, other.org_id],
    )
    for _ in range(3):
        wanted = batches.Wanted([acts.request(other) for _ in range(300)], None, crypto.sha256(b"theirs"), None)
        await batches.submit(db, other.org_id, wanted)
    superuser.execute(
        "INSERT INTO limner.batch (org_id, id, app_id, principal_id, request_hash, items, hold_mc, available_mc, open_at, succeeded,"
        " failed, cancelled, charged_mc, finished_at) SELECT %s, gen_random_uuid(), %s, %s, sha256(''), 1, 0, 0, -1, 1, 0, 0, 0, now()"
        " FROM generate_series(1, 3000)",
        [other.org_id, other.app.id, other.app.id],
    )


@contextlib.asynccontextmanager
async def passing(server: Server) -> AsyncIterator[Database]:
    """Sessions of its own, which end with it."""
    database = Database(Address(server.url), server.root, ROLES, size=2)
    await database.open()
    yield database
    await database.close()


def scans(superuser: psycopg.Connection) -> dict[str, int]:
    return counted(superuser, SCANS)


def counted(superuser: psycopg.Connection, query: str) -> dict[str, int]:
    acts.end_sessions(superuser)  # a session that was closed may not have counted yet, nor this one
    return dict(superuser.execute(query, [list(LARGE)]).fetchall())


async def _life(db: Database, tenant: Tenant) -> UUID:
    """One job, alone from submit to its refund."""
    job_id = (await acts.submit(db, tenant, key="mine", user="ann")).job_id
    held = await acts.lease(db, job_id, lease_s=600)
    await acts.start(db, held)
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        await runs.intend(tx, held, "main", "local", "m", "first")
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        await runs.record_error(tx, held, "main", "local", 1, code="x", message="x", latency_ms=1)
    async with db.system_tx("limner_dispatch", "a test beats") as tx:
        await runs.heartbeat(tx, [held], 600)
        await runs.report_many(tx, [(held, 50, "half")])
    await acts.finish(db, held)
    await acts.refund(db, tenant, job_id, 1, "r")
    return job_id


async def _shared(db: Database, tenant: Tenant) -> None:
    """The same in shared commits."""
    job_id = ids.new()
    async with db.shared_single([tenant.org_id]) as tx:
        assert await jobs.submit_many(tx, [(tenant.org_id, job_id, acts.request(tenant))])
    held = await acts.lease(db, job_id, lease_s=600)
    closing = runs.Closing("succeeded", charge_mc=MC, outputs=[], provider="local",
                           usage=[{"kind": "image", "quantity": 1, "unit": "image"}])  # fmt: skip
    intent = {"step": "main", "provider": "local", "provider_model": "m", "rule": "first"}
    ended = runs.closing_args(closing) | {"transfer": ids.new(), "event": ids.new()}
    for verb, args in (("start", {"event": ids.new()}), ("intend", intent), ("finish", ended)):
        row = {"place": 0, "org": tenant.org_id, "job": job_id, "fence": held.fence, **args}
        async with db.shared_single([tenant.org_id], "limner_worker") as tx:
            assert await runs.work_many(tx, {verb: [row]})


async def _others(db: Database, tenant: Tenant) -> None:
    """Replay, refusal, release, cancel, grant, and what owners read."""
    for _ in range(2):
        one = await acts.submit(db, tenant, key="again", user=None)
    await acts.cancel(db, tenant, one.job_id)
    held = await acts.lease(db, (await acts.submit(db, tenant)).job_id, lease_s=600)
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        await runs.release(tx, held, 60, counts=True)
    await acts.grant(db, tenant, MC, ref="g")
    await acts.top_up(db, tenant, MC, "t")
    await acts.wallet(db, tenant)
    await acts.lines(db, tenant)
    async with db.tenant_tx(tenant.org_id) as tx:
        assert await jobs.list_of_app(tx, tenant.app.id, external_id="ann", state=None, limit=20, before=None)
        assert await jobs.list_of_app(tx, tenant.app.id, external_id=None, state="queued", limit=20, before=None)
    await _batches(db, tenant)


async def _batches(db: Database, tenant: Tenant) -> None:
    """A batch among many: submitted, replayed, worked at, cancelled, ended by whoever looks, and what owners read."""
    hash_of = crypto.sha256(b"a batch")
    wanted = batches.Wanted([acts.request(tenant) for _ in range(20)], "b", hash_of, None)
    batch_id = (await batches.submit(db, tenant.org_id, wanted)).batch_id
    assert (await batches.submit(db, tenant.org_id, wanted)).replayed
    async with db.tenant_tx(tenant.org_id) as tx:
        items = await batches.list_items(tx, batch_id, state="queued", limit=5)
    await acts.work(db, items[0].job.id)
    assert await batches.cancel(db, tenant.org_id, tenant.app.id, batch_id) == "cancelled"
    other = (
        await batches.submit(db, tenant.org_id, replace(wanted, items=wanted.items[:2], idempotency_key=None))
    ).batch_id
    async with db.tenant_tx(tenant.org_id) as tx:
        for item in await batches.list_items(tx, other, state=None, limit=5):
            await acts.cancel(db, tenant, item.job.id)
    async with db.system_tx("limner_dispatch", "a test looks for batches") as tx:
        due = await tx.all("SELECT * FROM limner.due_batches(200)")
    assert [row["batch_id"] for row in due] == [other]
    async with db.tenant_single(tenant.org_id, "limner_worker") as tx:
        assert (await tx.get("SELECT limner.end_batch(%s, %s, %s) AS ended", [tx.ctx, other, ids.new()]))["ended"]
    async with db.tenant_tx(tenant.org_id) as tx:
        assert len(await batches.list_of_app(tx, tenant.app.id, external_id="ann", limit=20, before=None)) == 2
        assert len((await batch_receipts.build(tx, await batches.get(tx, tenant.app.id, batch_id)))["items"]) == 20


async def _capped(db: Database, tenant: Tenant) -> None:
    """A job among some hundred others whose provider has a cap: sorted, claimed with a place, moved on, released, claimed again."""
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        facts = {
            "name": "own/model",
            "display_name": "Own",
            "kind": "image.generate",
            "input_schema": SCHEMA,
            "price_mc": MC,
        }
        model_id = await catalog.put_model(tx, facts)
        providers = []
        for name, cap in (("narrow", 1), ("wide", 3)):
            made = await catalog.put_provider(
                tx, {"name": name, "display_name": name, "adapter": "local", "max_running": cap}
            )
            await catalog.put_route(tx, "own/model", name, provider_model="m", priority=cap)
            providers.append(made)
    wanted = replace(acts.request(tenant, priority=1), model_id=model_id)
    for _ in range(6):
        async with db.shared_single([tenant.org_id]) as tx:
            assert len(await jobs.submit_many(tx, [(tenant.org_id, ids.new(), wanted) for _ in range(50)])) == 50
    leases = [held for held in await acts.claim(db, 30, lease_s=600) if held.org_id == tenant.org_id]
    assert len(leases) == 4
    decisions = []
    for held in leases:
        async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
            decisions.append((await runs.intend(tx, held, "main", "p", "m", "r", provider_id=providers[1])).decision)
        async with db.system_tx("limner_dispatch", "a test beats") as tx:
            assert await runs.heartbeat(tx, [held], 600)
    assert sorted(decisions) == ["full", "send", "send", "send"]
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        await runs.release(tx, leases[0], 0, counts=False)
    again = [held for held in await acts.claim(db, 30, lease_s=600) if held.org_id == tenant.org_id]
    assert len(again) == 1
    async with db.system_tx("limner_operator", "a test looks") as tx:
        assert {one.name: one.running for one in await queue.list_capped(tx)} == {"narrow": 1, "wide": 3}


async def _webhooks(db: Database, tenant: Tenant) -> None:
    """An event to a webhook, among many that wait elsewhere: placed, claimed, failed, listed, sent again."""
    sealer = Sealer(RootKey(b"r" * 32), endpoints.PURPOSE)
    job_id = (await acts.submit(db, tenant)).job_id
    async with db.tenant_tx(tenant.org_id) as tx:
        await endpoints.ensure_default(tx, sealer, tenant.app.id)
        made = await endpoints.create(tx, sealer, tenant.app.id, "https://hooks.example.com/", most=20)
    await acts.work(db, job_id)
    async with db.tenant_tx(tenant.org_id) as tx:
        events = [event.id for event in await log.list_of_subject(tx, job_id)]
    async with db.system_tx("limner_dispatch", "a test places events") as tx:
        await tx.all("SELECT limner.queue_deliveries(%s::uuid[], %s::uuid[])", [[tenant.org_id] * len(events), events])
    mine: list[deliveries.Lease] = []
    while not mine:
        async with db.system_tx("limner_dispatch", "a test claims") as tx:
            mine = [held for held in await deliveries.claim(tx, "w", 64, 600, 4) if held.org_id == tenant.org_id]
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        assert await deliveries.find_order(tx, mine[0])
        await endpoints.keys(tx, sealer, made.id)
        await deliveries.end(tx, mine[0], deliveries.Ended("timeout", None, 1, 60.0), 1.0)
    now = datetime.now(UTC)
    async with db.tenant_tx(tenant.org_id) as tx:
        assert len(await deliveries.list_of_endpoint(tx, made.id, status="waiting")) == 1
        assert len(await deliveries.list_of_subject(tx, job_id)) == 1
        assert await deliveries.redeliver(tx, tenant.app.id, mine[0].delivery_id) == "waiting"
        hour = timedelta(hours=1)
        assert (await deliveries.redeliver_span(tx, tenant.app.id, made.id, now - hour, now + hour)).queued == 1


@pytest.mark.parametrize(
    "work", [_life, _shared, _others, _capped, _webhooks], ids=["alone", "shared", "others", "capped", "webhooks"]
)
async def test_mj18_no_hot_statement_reads_a_table_from_end_to_end(
    server: Server, crowd: Tenant, superuser: psycopg.Connection, work: Callable[[Database, Tenant], Awaitable[object]]
) -> None:
    before = scans(superuser)

    async with passing(server) as mine:
        await work(mine, crowd)

    assert scans(superuser) == before


@pytest.mark.parametrize("work", [_life, _shared], ids=["alone", "shared"])
async def test_mj18_a_job_reads_a_few_rows_of_an_organization_that_has_thousands(
    server: Server, others: Tenant, superuser: psycopg.Connection, work: Callable[[Database, Tenant], Awaitable[object]]
) -> None:
    acts.empty_queue(superuser)
    superuser.execute("VACUUM limner.job_queue")
    before = counted(superuser, READ)

    async with passing(server) as mine:
        await work(mine, others)

    read = {table: number - before[table] for table, number in counted(superuser, READ).items()}
    assert {table: number for table, number in read.items() if number > FEW} == {}
    assert read["wallet"] > 0


async def test_mj18_whoever_has_little_reads_little_among_thousands(
    server: Server, others: Tenant, superuser: psycopg.Connection
) -> None:
    """Plans as a session makes them, which knows whom it asks for."""
    name, app_id = superuser.info.dbname, others.app.id
    superuser.execute(f"ALTER DATABASE {name} RESET plan_cache_mode")
    before = counted(superuser, READ)

    async with passing(server) as mine, mine.tenant_tx(others.org_id) as tx:
        assert not await jobs.list_of_app(tx, app_id, external_id="planted-77", state=None, limit=20, before=None)
        assert not await batches.list_of_app(tx, app_id, external_id="planted-77", limit=20, before=None)

    superuser.execute(f"ALTER DATABASE {name} SET plan_cache_mode = force_generic_plan")
    read = {table: number - before[table] for table, number in counted(superuser, READ).items()}
    assert {table: number for table, number in read.items() if number > FEW} == {}


async def test_mj18_the_minutes_check_of_the_books_reads_what_changed(
    server: Server, crowd: Tenant, superuser: psycopg.Connection
) -> None:
    """Only the queue is read whole: what a wallet holds back is what its open jobs need."""
    row = superuser.execute("SELECT clock_timestamp() AS now").fetchone()
    assert row is not None
    before = scans(superuser) | {"job_queue": 0}

    async with passing(server) as mine:
        await _life(mine, crowd)
        async with mine.system_tx("limner_audit", "a test checks the books") as tx:
            violations, checked, _ = await invariants.check_changes(tx, row[0])

    assert (violations, checked) == (0, 2)
    assert scans(superuser) | {"job_queue": 0} == before


async def test_mj18_a_scan_from_end_to_end_would_be_seen(
    server: Server, crowd: Tenant, superuser: psycopg.Connection
) -> None:
    before = scans(superuser)
    with psycopg.connect(superuser_conninfo(server)) as other:
        other.execute("SELECT count(*) FROM limner.job j WHERE j.model = 'x'")
    assert scans(superuser)["job"] > before["job"]
