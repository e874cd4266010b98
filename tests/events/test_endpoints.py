"""What becomes of a webhook: turned off and on, its secrets, deliveries sent again, what receipts tell."""

import json
from dataclasses import replace

import pytest
from standardwebhooks import Webhook

from limner.events import endpoints
from limner.events.deliveries import EndpointOff
from limner.kit import signing
from limner.kit.crypto import RootKey, Sealer
from tests.conftest import Server
from tests.events.office import Office
from tests.faults.cluster import eventually


async def test_410_turns_a_webhook_off_says_so_and_what_waits_is_sent_when_it_is_on_again(office: Office) -> None:
    endpoint, watcher = (
        await office.endpoint("hook/410"),
        await office.endpoint("watch/200", event_types=["webhook.endpoint_disabled"]),
    )
    await office.happen(1)
    async with office.delivering():
        gone = await office.settled(endpoint)
    later = await office.happen(2)

    off = await office.again(endpoint)
    [event] = office.superuser.execute(
        "SELECT id, subject_id, payload FROM limner.event WHERE org_id = %s AND type = 'webhook.endpoint_disabled'",
        [office.tenant.org_id],
    ).fetchall()
    assert (gone.status, gone.attempts[0]["status"]) == ("failed", 410)
    assert (off.is_enabled, off.disabled_reason) == (False, "gone")
    assert event[1:] == (endpoint.id, {"endpoint_id": str(endpoint.id), "reason": "gone"})
    assert await office.place([event[0]]) == 1
    assert (await office.only(watcher)).event_id == event[0]
    assert len(await office.deliveries(endpoint)) == 1, "an endpoint that is off is owed nothing new"

    await office.change(endpoint, "hook/200")
    await office.switch(endpoint, enabled=True)
    span = await office.redeliver_span(endpoint)
    assert span.queued == 3
    async with office.delivering():
        await eventually(lambda: len(office.receiver.of("hook")) == 4)
    assert {d.event_id for d in await office.deliveries(endpoint)} >= set(later)


async def test_410_of_a_requests_own_url_ends_that_delivery_only(office: Office) -> None:
    own = await office.default()
    await office.happen(1, deliver_to=f"{office.receiver.url}/asked/410")

    async with office.delivering():
        delivery = await office.settled(own)

    assert (delivery.status, delivery.attempts[0]["status"]) == ("failed", 410)
    assert (await office.again(own)).is_enabled
    assert (await office.again(own)).failing_since is None


async def test_five_days_of_nothing_but_failures_turn_a_webhook_off_and_one_success_begins_anew(office: Office) -> None:
    endpoint = await office.endpoint("hook/500")
    await office.happen(1)
    async with office.delivering() as loop:
        await office.settled(endpoint)
        first = await office.again(endpoint)
        assert first.failing_since is not None
        office.superuser.execute(
            "UPDATE limner.webhook_endpoint SET failing_since = clock_timestamp() - interval '4 days 23 hours' WHERE id = %s",
            [endpoint.id],
        )
        office.due_now(endpoint)
        loop.wake()
        await office.settled(endpoint, 2)
        assert (await office.again(endpoint)).is_enabled, "five days are not over"
        office.superuser.execute(
            "UPDATE limner.webhook_endpoint SET failing_since = failing_since - interval '1 hour 1 second' WHERE id = %s",
            [endpoint.id],
        )
        office.due_now(endpoint)
        loop.wake()
        await office.settled(endpoint, 3)

    off = await office.again(endpoint)
    assert (off.is_enabled, off.disabled_reason) == (False, "failing")

    await office.change(endpoint, "hook/200")
    await office.switch(endpoint, enabled=True)
    office.due_now(endpoint)
    async with office.delivering():
        await office.settled(endpoint, 4)
    on = await office.again(endpoint)
    assert (on.is_enabled, on.failing_since) == (True, None)
    assert on.last_success_at is not None


async def test_mj16_both_secrets_sign_during_a_rotation_and_the_old_one_no_longer(office: Office) -> None:
    endpoint = await office.endpoint()
    [old] = (await office.keys(endpoint)).secrets
    await office.rotate(endpoint)
    new, still = (await office.keys(endpoint)).secrets
    await office.happen()
    async with office.delivering():
        await office.settled(endpoint)
    office.superuser.execute(
        "UPDATE limner.webhook_endpoint SET previous_until = clock_timestamp() WHERE id = %s", [endpoint.id]
    )
    await office.happen()
    async with office.delivering():
        await eventually(lambda: len(office.receiver.of("hook")) == 2)

    during, after = office.receiver.of("hook")
    assert still == old != new
    for secret in (old, new):
        assert Webhook(signing.secret_text(secret)).verify(during.body, dict(during.headers))
    assert len(after.headers["webhook-signature"].split(" ")) == 1
    assert Webhook(signing.secret_text(new)).verify(after.body, dict(after.headers))


async def test_a_redelivery_has_the_same_id_and_begins_the_schedule_anew(office: Office) -> None:
    endpoint = await office.endpoint()
    await office.happen()
    async with office.delivering() as loop:
        first = await office.settled(endpoint)
        assert await office.redeliver(first.id) == "waiting"
        loop.wake()
        second = await office.settled(endpoint, 2)

    assert second.id == first.id
    assert len({one.id for one in office.receiver.of("hook")}) == 1
    assert second.status == "delivered"
    assert office.row("webhook_delivery", first.id)["tries"] == 1


async def test_nothing_is_sent_again_to_a_webhook_that_is_off(office: Office) -> None:
    endpoint = await office.endpoint("hook/410")
    await office.happen()
    async with office.delivering():
        gone = await office.settled(endpoint)

    with pytest.raises(EndpointOff):
        await office.redeliver(gone.id)


async def test_a_secret_that_does_not_open_is_no_receivers_failure(office: Office) -> None:
    endpoint = await office.endpoint()
    await office.happen()

    async with office.delivering(root=RootKey(b"x" * 32)):
        delivery = await office.settled(endpoint)

    assert [a["outcome"] for a in delivery.attempts] == ["internal_error"]
    assert (await office.again(endpoint)).failing_since is None
    assert office.receiver.got == []


async def test_a_secret_stands_sealed_in_the_database_and_opens_in_no_other_row(office: Office) -> None:
    one, other = await office.endpoint("one/200"), await office.endpoint("other/200")
    [secret] = (await office.keys(one)).secrets
    dump = json.dumps(office.row("webhook_endpoint", one.id))
    assert secret.hex() not in dump
    assert signing.secret_text(secret) not in dump

    office.superuser.execute(
        "UPDATE limner.webhook_endpoint SET secret = (SELECT secret FROM limner.webhook_endpoint WHERE id = %s) WHERE id = %s",
        [one.id, other.id],
    )
    await office.happen()
    async with office.delivering():
        moved = await office.settled(other)

    assert [a["outcome"] for a in moved.attempts] == ["internal_error"]


async def test_secrets_outlive_the_root_key_they_were_sealed_under(office: Office, server: Server) -> None:
    """Sealed again while an old root key is there; then that one may go. The second time there is nothing to do."""
    endpoint = await office.endpoint("outlives/200", ed25519=True)
    before = await office.keys(endpoint)
    new = RootKey(b"n" * 32)

    async with office.db.tenant_tx(office.tenant.org_id) as tx:
        done = await endpoints.reseal(tx, Sealer(replace(new, old=(server.root,)), endpoints.PURPOSE))
        again = await endpoints.reseal(tx, Sealer(new, endpoints.PURPOSE))
        after = await endpoints.keys(tx, Sealer(new, endpoints.PURPOSE), endpoint.id)

    assert (done[1], again, after) == (0, (0, 0), before)
    assert done[0] >= 2
    await office.happen()
    async with office.delivering(root=new):
        assert (await office.settled(endpoint)).status == "delivered"


async def test_a_secret_that_no_root_key_opens_is_left_as_it_is_and_counted(office: Office) -> None:
    endpoint = await office.endpoint("stays/200")
    before = office.row("webhook_endpoint", endpoint.id)["secret"]

    async with office.db.tenant_tx(office.tenant.org_id) as tx:
        done = await endpoints.reseal(tx, Sealer(RootKey(b"z" * 32), endpoints.PURPOSE))

    assert (done[0], done[1] >= 1) == (0, True)
    assert office.row("webhook_endpoint", endpoint.id)["secret"] == before


async def test_a_url_that_was_taken_away_is_waited_for(office: Office) -> None:
    own = await office.default()
    await office.change(own, "own/200")
    await office.happen()
    await office.change(own, None)

    assert await office.claim() == []
    assert office.row("webhook_endpoint", own.id)["turn_at"] is None

    await office.change(own, "own/200")
    async with office.delivering():
        assert (await office.settled(own)).status == "delivered"


async def test_a_receipt_of_every_kind_of_delivery_stands_on_the_job(office: Office) -> None:
    await office.endpoint()
    job_id, event_id = await office.job()
    await office.place([event_id])
    async with office.delivering():
        await eventually(lambda: office.receiver.of("hook"))
        receipt = await eventually(lambda: office.receipt(job_id, "delivered"))

    [sent] = receipt["webhooks"]
    assert (sent["event"], sent["to"], sent["status"]) == ("job.completed", "webhook", "delivered")
    assert [a["outcome"] for a in sent["attempts"]] == ["delivered"]
    assert f"msg_{sent['delivery_id']}" == office.receiver.of("hook")[0].id
