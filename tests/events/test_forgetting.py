"""Deliveries that ended long ago are forgotten with their tries; what is young, under way or still owed stays."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from limner.events import forgetting
from limner.events.deliveries import DeliveryNotFound
from limner.events.endpoints import EndpointNotFound
from limner.events.forgetting import Forgetting
from tests.events.office import Office, ended, office, receiver

__all__ = ["office", "receiver"]

DAYS = 30
NOW = datetime.now(UTC)
AGED = """
UPDATE limner.webhook_delivery
   SET id = (left(limner._first_id(created_at - %(ago)s)::text, 13) || substr(id::text, 14))::uuid, created_at = created_at - %(ago)s,
       finished_at = finished_at - %(ago)s, next_at = next_at - %(ago)s
 WHERE id = %(id)s RETURNING id
"""


async def _done(office: Office, count: int = 1) -> list[UUID]:
    """So many events, each told at the second try."""
    await office.happen(count)
    leases = await office.claim(at_once=count)
    assert len(leases) == count
    for lease in leases:
        await office.end(lease, ended("http_5xx", 500))
    office.superuser.execute(
        "UPDATE limner.webhook_endpoint SET turn_at = clock_timestamp() WHERE org_id = %s", [office.tenant.org_id]
    )
    office.superuser.execute(
        "UPDATE limner.webhook_delivery SET next_at = clock_timestamp() WHERE org_id = %s AND phase = 'waiting'",
        [office.tenant.org_id],
    )
    for lease in await office.claim(at_once=count):
        await office.end(lease, ended("delivered", 200))
    return [lease.delivery_id for lease in leases]


def _age(office: Office, delivery_id: UUID, days: float) -> UUID:
    """As if all of it had been so long ago; the id it has then."""
    with office.superuser.transaction():
        office.superuser.execute("SET LOCAL session_replication_role = replica")
        row = office.superuser.execute(AGED, {"ago": timedelta(days=days), "id": delivery_id}).fetchone()
        assert row is not None
        moved = "UPDATE limner.webhook_attempt SET delivery_id = %s WHERE delivery_id = %s"
        office.superuser.execute(moved, [row[0], delivery_id])
    aged: UUID = row[0]
    return aged


async def _forget(office: Office, keep_days: int = DAYS) -> dict[str, Any]:
    return (await Forgetting(office.db, keep_days).forget_deliveries(NOW)).facts


def _tries(office: Office) -> int:
    row = office.superuser.execute(
        "SELECT count(*) FROM limner.webhook_attempt WHERE org_id = %s", [office.tenant.org_id]
    ).fetchone()
    assert row is not None
    return int(row[0])


async def test_what_ended_long_ago_goes_with_its_tries_and_the_rest_stays(office: Office) -> None:
    endpoint = await office.endpoint()
    old, young = await _done(office, 2)
    _age(office, old, DAYS + 0.1)
    _age(office, young, DAYS - 0.1)

    assert await _forget(office, 0) == {"forgotten": 0}
    assert (await _forget(office))["forgotten"] == 1

    [left] = await office.deliveries(endpoint)
    assert left.status == "delivered"
    assert _tries(office) == 2
    with pytest.raises(DeliveryNotFound):
        await office.redeliver(old)


async def test_what_is_under_way_stays_however_old_it_is(office: Office) -> None:
    endpoint = await office.endpoint()
    [under_way, again] = await _done(office, 2)
    under_way, again = _age(office, under_way, 2 * DAYS), _age(office, again, 2 * DAYS)
    assert await office.redeliver(again) == "waiting"
    assert await office.redeliver(under_way) == "waiting"
    await office.claim(1)

    assert (await _forget(office))["forgotten"] == 0

    assert sorted(one.status for one in await office.deliveries(endpoint)) == ["sending", "waiting"]


async def test_what_waits_for_a_webhook_that_is_off_is_forgotten_as_late(office: Office) -> None:
    endpoint = await office.endpoint()
    await office.happen()
    await office.switch(endpoint, enabled=False)
    _age(office, (await office.only(endpoint)).id, DAYS + 1)

    assert (await _forget(office))["forgotten"] == 1
    assert await office.deliveries(endpoint) == []
    assert (await office.again(endpoint)).id == endpoint.id


async def test_a_webhook_that_was_removed_goes_after_its_deliveries(office: Office) -> None:
    endpoint = await office.endpoint()
    [delivery] = await _done(office)
    office.superuser.execute(
        "UPDATE limner.webhook_endpoint SET removed_at = clock_timestamp() - make_interval(days => 31) WHERE id = %s",
        [endpoint.id],
    )

    assert (await _forget(office))["forgotten"] == 0
    assert office.row("webhook_endpoint", endpoint.id)["removed_at"] is not None
    _age(office, delivery, DAYS + 1)
    assert (await _forget(office))["forgotten"] == 1

    with pytest.raises(EndpointNotFound):
        await office.again(endpoint)


async def test_many_are_forgotten_in_batches(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "BATCH", 2)
    endpoint = await office.endpoint()
    for delivery in await _done(office, 5):
        _age(office, delivery, DAYS + 1)

    assert (await _forget(office))["forgotten"] == 5
    assert (await office.deliveries(endpoint), _tries(office)) == ([], 0)
