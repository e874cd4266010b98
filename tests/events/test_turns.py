"""Whose turn it is: endpoints in turn, each with few at once, and a stuck one in nobody's way. By counts, never by clocks."""

import asyncio
from collections import Counter
from uuid import UUID

import psycopg
import pytest

from tests import tiers
from tests.events.office import Office, ended
from tests.faults.cluster import eventually


@pytest.mark.parametrize("backlog", tiers.counts(2_000, 100_000))
async def test_a_stuck_receiver_with_a_backlog_delays_nobody(office: Office, backlog: int) -> None:
    """It has its places and no more; everything of the other's is delivered while not one of the stuck one's is."""
    stuck, other = await office.endpoint("stuck/hang"), await office.endpoint("other/200", event_types=["job.started"])
    for _ in range(backlog // 2_000):
        await office.happen(2_000)
    assert len(await office.deliveries(stuck, 5)) == 5

    async with office.delivering() as loop:
        await eventually(lambda: len(office.receiver.of("stuck")) == 4)
        for count in (10, 20, 30):
            await office.happen(10, "job.started")
            loop.wake()
            await eventually(lambda: len(office.receiver.of("other")) == count)  # noqa: B023  (called before the next round)
        statuses = Counter(d.status for d in await office.deliveries(other))
        waiting = office.superuser.execute(
            "SELECT count(*) FROM limner.webhook_delivery WHERE endpoint_id = %s AND phase = 'waiting'", [stuck.id]
        ).fetchone()
        assert office.receiver.most["stuck"] == len(office.receiver.of("stuck")) == 4
        office.superuser.execute("UPDATE limner.webhook_endpoint SET is_enabled = false WHERE id = %s", [stuck.id])

    assert statuses["delivered"] + statuses["sending"] == 30
    assert waiting == (backlog // 2_000 * 2_000 - 4,)


async def test_an_endpoint_has_four_at_once_over_all_loops(office: Office) -> None:
    await office.endpoint("slow/hang")
    await office.happen(30)

    async with office.delivering(), office.delivering():
        await eventually(lambda: len(office.receiver.of("slow")) == 4)
        await asyncio.sleep(0.3)
        assert len(office.receiver.of("slow")) == 4
        office.receiver.let_go.set()
        await eventually(lambda: len(office.receiver.of("slow")) == 30)

    assert office.receiver.most["slow"] <= 4


async def test_a_process_sends_no_more_at_once_than_it_may(office: Office) -> None:
    for n in range(5):
        await office.endpoint(f"slow{n}/hang")
    await office.happen(4)

    async with office.delivering(slots=7) as loop:
        await eventually(lambda: len(office.receiver.got) == 7)
        loop.wake()
        await asyncio.sleep(0.2)
        assert loop.active == len(office.receiver.got) == 7
        office.receiver.let_go.set()
        await eventually(lambda: len(office.receiver.got) == 20)


async def test_endpoints_with_a_backlog_go_behind_those_that_wait(office: Office) -> None:
    """Three have a hundred each, one came later and has one; whoever claims four at a time comes to it after those three."""
    for n in range(3):
        await office.endpoint(f"full{n}/200")
    await office.happen(100)
    late = await office.endpoint("late/200", event_types=["job.started"])
    await office.happen(1, "job.started")

    claimed = []
    for _ in range(4):
        round_ = await office.claim(4)
        for lease in round_:
            await office.end(lease, ended("delivered", 200))
        claimed += [lease.delivery_id for lease in round_]

    assert (await office.only(late)).id in claimed


async def test_racing_claims_share_nothing_and_lose_nothing(office: Office) -> None:
    for n in range(6):
        await office.endpoint(f"hook{n}/200")
    await office.happen(20)
    taken: list[UUID] = []

    async def claimer() -> None:
        for _ in range(30):
            leases = await office.claim(8)
            taken.extend(lease.delivery_id for lease in leases)
            for lease in leases:
                assert await office.end(lease, ended("delivered", 200)) == "recorded"

    await asyncio.gather(*(claimer() for _ in range(6)))
    while leases := await office.claim():
        taken.extend(lease.delivery_id for lease in leases)
        for lease in leases:
            assert await office.end(lease, ended("delivered", 200)) == "recorded"

    assert len(taken) == len(set(taken)) == 120


async def test_what_is_placed_while_a_claim_looks_away_has_its_turn(office: Office) -> None:
    """The turn is set under the row's lock: whatever races, something that waits has a turn."""
    endpoint = await office.endpoint()

    async def places() -> None:
        for _ in range(40):
            await office.happen(1)

    async def works() -> None:
        for _ in range(80):
            for lease in await office.claim(2):
                await office.end(lease, ended("delivered", 200))

    await asyncio.gather(places(), places(), works(), works(), works())

    waiting = office.superuser.execute(
        "SELECT count(*) FROM limner.webhook_delivery WHERE endpoint_id = %s AND phase = 'waiting'", [endpoint.id]
    ).fetchone()
    turn = office.row("webhook_endpoint", endpoint.id)["turn_at"]
    assert waiting is not None
    assert (turn is not None) == (waiting[0] > 0)
    while leases := await office.claim():
        for lease in leases:
            await office.end(lease, ended("delivered", 200))
    assert len(await office.deliveries(endpoint)) == 80
    assert all(d.status == "delivered" for d in await office.deliveries(endpoint))


async def test_an_endpoint_with_nothing_to_do_has_no_turn(office: Office) -> None:
    endpoint = await office.endpoint()
    await office.happen()
    [lease] = await office.claim()
    turn = office.row("webhook_endpoint", endpoint.id)["turn_at"]
    assert turn == office.row("webhook_delivery", lease.delivery_id)["lease_until"], "the end of its lease"

    await office.end(lease, ended("http_5xx", 500))
    assert (
        office.row("webhook_endpoint", endpoint.id)["turn_at"]
        == office.row("webhook_delivery", lease.delivery_id)["next_at"]
    )
    office.due_now(endpoint)
    [lease] = await office.claim()
    await office.end(lease, ended("delivered", 200))

    assert office.row("webhook_endpoint", endpoint.id)["turn_at"] is None


async def test_a_webhook_that_was_turned_off_while_it_was_sent_is_not_claimed_again(office: Office) -> None:
    endpoint = await office.endpoint()
    await office.happen(3)
    leases = await office.claim()
    await office.switch(endpoint, enabled=False)

    await office.end(leases[0], ended("http_5xx", 500))

    assert await office.claim() == []
    await office.switch(endpoint, enabled=True)
    office.due_now(endpoint)
    assert [lease.delivery_id for lease in await office.claim()] == [leases[0].delivery_id]


async def test_who_claims_sees_neither_urls_nor_secrets_nor_payloads(office: Office) -> None:
    await office.endpoint()
    for column in ("url", "secret", "previous_secret", "signing_key", "description"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with office.db.system_tx("limner_dispatch", "a test looks where it may not") as tx:
                await tx.all(f"SELECT {column} FROM limner.webhook_endpoint")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        async with office.db.system_tx("limner_dispatch", "a test looks where it may not") as tx:
            await tx.all("SELECT outcome FROM limner.webhook_attempt")


async def test_no_role_but_the_database_itself_records_a_try(office: Office) -> None:
    await office.endpoint()
    await office.happen()
    [lease] = await office.claim()

    for role in ("limner_api", "limner_worker", "limner_operator"):
        for statement in (
            "UPDATE limner.webhook_delivery SET phase = 'delivered'",
            "INSERT INTO limner.webhook_attempt (org_id, delivery_id, n, outcome, latency_ms) VALUES (%s, %s, 9, 'delivered', 1)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                async with office.db.tenant_tx(office.tenant.org_id, role) as tx:
                    await tx.execute(statement, [tx.org_id, lease.delivery_id] if "INSERT" in statement else None)


async def test_the_metrics_know_who_waits_and_who_fails(office: Office) -> None:
    async def facts() -> tuple[bool, int]:
        async with office.db.system_tx("limner_api", "a test reads a few numbers") as tx:
            row = await tx.get("SELECT * FROM limner.webhook_facts()")
        return row["due_s"] > 100, row["failing"]

    office.superuser.execute("UPDATE limner.webhook_endpoint SET failing_since = NULL")
    endpoint = await office.endpoint()
    assert await facts() == (False, 0)
    await office.happen(2)
    [one, _] = await office.claim()
    await office.end(one, ended("http_5xx", 500))
    office.superuser.execute(
        "UPDATE limner.webhook_endpoint SET turn_at = clock_timestamp() - interval '2 minutes' WHERE id = %s",
        [endpoint.id],
    )

    assert await facts() == (True, 1)
