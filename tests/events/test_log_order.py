"""The log's order: whoever reads on from where it was misses nothing, sees nothing twice, and meets nothing out of turn."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from limner.db import migrate
from limner.db.pools import Database
from limner.db.wake import Herald
from limner.events import log
from limner.events.relay import Relay
from limner.kit import ids
from tests import acts
from tests.alone import db_alone, server_alone, superuser_alone, superuser_conninfo
from tests.conftest import MakeTenant, Server, Tenant
from tests.faults.cluster import eventually
from tests.tiers import counts

__all__ = ["db_alone", "server_alone", "superuser_alone"]

WRITERS = 16
PATIENCE_S = 20.0
INSERT = "INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload) VALUES (%s, %s, %s, 'job.started', %s, %s)"


@contextlib.asynccontextmanager
async def relaying(db: Database, relays: int = 1) -> AsyncIterator[list[Relay]]:
    herald = Herald(db, "limner_dispatch")
    made = [Relay(db, herald) for _ in range(relays)]
    tasks = [asyncio.create_task(run()) for run in (herald.run, *(one.run for one in made))]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def placed(superuser: psycopg.Connection, tenant: Tenant) -> int:
    return acts.count(
        superuser, "SELECT coalesce(max(seq), 0) FROM limner.event_order WHERE org_id = %s", tenant.org_id
    )


async def write(server: Server, tenant: Tenant, writer: int, transactions: int) -> list[tuple[int, list[UUID]]]:
    """Transactions of one to three events that stay open for a while; every tenth is rolled back. What was committed."""
    dice = random.Random(writer)
    committed = []
    async with await psycopg.AsyncConnection.connect(superuser_conninfo(server)) as conn:
        for turn in range(transactions):
            made = [ids.new() for _ in range(dice.randint(1, 3))]
            for event_id in made:
                await conn.execute(
                    INSERT,
                    [tenant.org_id, event_id, tenant.app.id, tenant.app.id, Jsonb({"writer": writer, "turn": turn})],
                )
                if dice.random() < 0.3:
                    await asyncio.sleep(dice.random() * 0.01)
            if dice.random() < 0.1:
                await conn.rollback()
                continue
            await conn.commit()
            committed.append((turn, made))
    return committed


async def tail(db: Database, tenant: Tenant, until: asyncio.Event) -> list[log.Event]:
    """Reads on and on from where it was, as a client does; once more when all is written and placed."""
    read: list[log.Event] = []
    after, last = 0, False
    while True:
        async with db.tenant_tx(tenant.org_id) as tx:
            page = await log.list_of_app(tx, tenant.app.id, after=after, limit=100)
        read += page.events
        after = page.after
        if not page.more:
            if last:
                return read
            last = until.is_set()
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("events", counts(pr=3_000, long=100_000))
async def test_mj16_a_tailing_reader_misses_nothing_whatever_commits_late(
    server: Server, db: Database, tenant: Tenant, superuser: psycopg.Connection, events: int
) -> None:
    """16 writers whose transactions overlap, two relays that take turns, one reader."""
    done = asyncio.Event()
    async with relaying(db, relays=2) as (relay, _):
        reading = asyncio.create_task(tail(db, tenant, done))
        written = await asyncio.gather(*(write(server, tenant, n, events // (2 * WRITERS)) for n in range(WRITERS)))
        relay.wake()
        total = sum(len(made) for of_writer in written for _, made in of_writer)
        await eventually(lambda: placed(superuser, tenant) == total, 60, 0.1)
        done.set()
        read = await reading

    assert [event.id for event in read] == list(dict.fromkeys(event.id for event in read))
    assert [event.seq for event in read] == list(range(1, total + 1))
    assert {event.id for event in read} == {one for of_writer in written for _, made in of_writer for one in made}
    for writer in range(WRITERS):
        turns = [event.payload["turn"] for event in read if event.payload["writer"] == writer]
        assert turns == sorted(turns)


async def test_what_follows_an_open_transaction_waits_for_its_end(
    server: Server, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    early, late = ids.new(), ids.new()
    async with relaying(db) as (relay,), await psycopg.AsyncConnection.connect(superuser_conninfo(server)) as slow:
        await slow.execute(INSERT, [tenant.org_id, early, tenant.app.id, tenant.app.id, Jsonb({})])
        superuser.execute(INSERT, [tenant.org_id, late, tenant.app.id, tenant.app.id, Jsonb({})])
        relay.wake()
        await asyncio.sleep(0.3)
        async with db.tenant_tx(tenant.org_id) as tx:
            assert (await log.list_of_app(tx, tenant.app.id, after=0, limit=10)).events == []

        await slow.commit()
        await eventually(lambda: placed(superuser, tenant) == 2)

    async with db.tenant_tx(tenant.org_id) as tx:
        read = (await log.list_of_app(tx, tenant.app.id, after=0, limit=10)).events
    assert [event.id for event in read] == [early, late]


async def test_a_pass_reads_no_more_of_the_log_the_longer_it_is(
    make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """Although the planner last looked when the log was next to empty, as in a new installation's first minute."""
    read = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = 'limner' AND relname IN ('event', 'event_order')"
    tenant = await make_tenant()

    def write_events(events: int) -> None:
        superuser.execute(
            "INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)"
            " SELECT %s, limner._new_id(), %s, 'job.started', %s, '{}' FROM generate_series(1, %s)",
            [tenant.org_id, tenant.app.id, tenant.app.id, events],
        )

    def one_pass() -> int:
        before, until, placed_now = acts.count(superuser, read), time.monotonic() + PATIENCE_S, 0
        while not placed_now:  # whatever is under way in the server, PostgreSQL's own workers too, holds the log up
            assert time.monotonic() < until, "the log is held up"
            time.sleep(0.01)
            placed_now = acts.count(superuser, "SELECT placed FROM limner.relay_events(500)")
        assert placed_now in (1, 500)
        superuser.execute("SELECT pg_stat_force_next_flush()")
        return acts.count(superuser, read) - before

    superuser.execute("SET session_replication_role = replica")
    superuser.execute("TRUNCATE limner.event_order; DELETE FROM limner.event")
    write_events(1)
    one_pass()
    superuser.execute("VACUUM ANALYZE limner.event, limner.event_order")

    reads = []
    for _ in range(6):
        write_events(500)
        reads.append(one_pass())

    assert max(reads) < 6 * 500, reads


async def test_a_log_restored_on_another_server_goes_on(
    server: Server, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """Transactions are counted from the beginning there: `limner db migrate` says so, and nothing is told twice."""
    tenant = await make_tenant()
    told, untold = await acts.submit(db, tenant), await acts.submit(db, tenant)
    async with relaying(db) as (relay,):
        await acts.work(db, told.job_id)
        relay.wake()
        await eventually(lambda: placed(superuser, tenant) == 2)
    await acts.work(db, untold.job_id)
    superuser.execute("UPDATE limner.event SET xid = (xid::text::bigint + 1000000000)::text::xid8")
    superuser.execute("UPDATE limner.event_relay SET xid = (xid::text::bigint + 1000000000)::text::xid8")
    async with db.system_tx("limner_dispatch", "a test relays") as tx:
        with pytest.raises(psycopg.Error, match="limner db migrate"):
            await tx.get("SELECT * FROM limner.relay_events(10)")

    migrate.migrate(server.url, server.root)
    async with relaying(db):
        await eventually(lambda: placed(superuser, tenant) == 4)

    async with db.tenant_tx(tenant.org_id) as tx:
        read = (await log.list_of_app(tx, tenant.app.id, after=0, limit=10)).events
    assert [(event.seq, event.subject_id) for event in read] == [
        (1, told.job_id), (2, told.job_id), (3, untold.job_id), (4, untold.job_id),
    ]  # fmt: skip


async def test_another_app_reads_its_own_events_only(
    db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    mine, other = await make_tenant(), await make_tenant()
    for tenant in (mine, other):
        superuser.execute(INSERT, [mine.org_id, ids.new(), tenant.app.id, tenant.app.id, Jsonb({})])
    async with relaying(db):
        await eventually(lambda: placed(superuser, mine) == 2)

    async with db.tenant_tx(mine.org_id) as tx:
        page = await log.list_of_app(tx, mine.app.id, after=0, limit=10)
    async with db.tenant_tx(other.org_id) as tx:
        foreign = await log.list_of_app(tx, mine.app.id, after=0, limit=10)

    assert ([event.seq for event in page.events], page.after, page.more) == ([1], 2, False)
    assert foreign.events == []
