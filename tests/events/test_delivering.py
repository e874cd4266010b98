"""The delivery loop against real receivers: what is sent, every way a try can go, and what follows from it."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from standardwebhooks import Webhook

from limner.kit import signing
from tests.events.office import Office, ended
from tests.faults.cluster import eventually
from tests.running import free_port


async def test_mj16_a_job_that_ended_is_told_signed_and_verifiable(office: Office) -> None:
    endpoint = await office.endpoint(ed25519=True)
    job_id, event_id = await office.job()
    assert await office.place([event_id]) == 1

    async with office.delivering():
        delivery = await office.settled(endpoint)

    [got] = office.receiver.of("hook")
    [secret] = (await office.keys(endpoint)).secrets
    told = Webhook(signing.secret_text(secret)).verify(got.body, dict(got.headers))
    assert (delivery.status, [a["outcome"] for a in delivery.attempts]) == ("delivered", ["delivered"])
    assert got.id == f"msg_{delivery.id}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"].startswith("limner/")
    assert " v1a," in got.headers["webhook-signature"]
    assert (told["type"], told["event"], told["job_id"]) == ("job.completed", "job.completed", str(job_id))
    assert (told["status"], told["user_id"], told["tokens_charged"], told["outputs"]) == ("succeeded", "ann", 1, [])
    assert told["data"] == {"job_id": str(job_id), "status": "succeeded", "tokens_charged": 1}
    assert (told["id"], told["model"]) == (str(event_id), "test/painter")
    assert told["timestamp"].endswith("Z")
    assert told["completed_at"].endswith("Z")


async def test_an_app_hears_of_a_jobs_ends_unless_it_asks_for_more(office: Office) -> None:
    ends, starts = await office.endpoint("ends/200"), await office.endpoint("starts/200", event_types=["job.started"])
    events = {type_: office.plant(1, type_)[0] for type_ in ("job.started", "job.attempt_failed", "job.failed")}

    await office.place(list(events.values()))

    assert (await office.only(ends)).event_id == events["job.failed"]
    assert (await office.only(starts)).event_id == events["job.started"]


async def test_the_same_events_placed_again_make_no_second_delivery(office: Office) -> None:
    endpoint = await office.endpoint()
    event_ids = await office.happen(3)

    assert await office.place(event_ids) == 0
    assert len(await office.deliveries(endpoint)) == 3


async def test_a_requests_own_url_takes_the_place_of_the_apps_and_is_signed_with_the_apps_secret(
    office: Office,
) -> None:
    own, extra = await office.default(), await office.endpoint("extra/200")
    await office.change(own, "own/200")

    await office.happen(1, deliver_to=f"{office.receiver.url}/asked/200")
    async with office.delivering():
        asked = await office.settled(own)
        await office.settled(extra)

    [secret] = (await office.keys(own)).secrets
    [got] = office.receiver.of("asked")
    assert asked.per_request
    assert Webhook(signing.secret_text(secret)).verify(got.body, dict(got.headers))
    assert (len(office.receiver.of("own")), len(office.receiver.of("extra"))) == (0, 1)


async def test_a_first_request_with_a_url_makes_the_apps_own_webhook_and_its_secret(office: Office) -> None:
    await office.happen(1, deliver_to=f"{office.receiver.url}/asked/200")

    async with office.delivering():
        [got] = await eventually(lambda: office.receiver.of("asked"))
    own = await office.default()

    [secret] = (await office.keys(own)).secrets
    assert Webhook(signing.secret_text(secret)).verify(got.body, dict(got.headers))
    assert (await office.only(own)).status == "delivered"


@pytest.mark.parametrize(
    ("path", "outcome", "status"),
    [
        ("hook/204", "delivered", 204), ("hook/301", "http_3xx", 301), ("hook/308", "http_3xx", 308), ("hook/400", "http_4xx", 400),
        ("hook/404", "http_4xx", 404), ("hook/429", "http_4xx", 429), ("hook/500", "http_5xx", 500), ("hook/503", "http_5xx", 503),
    ],
)  # fmt: skip
async def test_what_a_receiver_answers_is_kept_as_a_class_and_a_status(
    office: Office, path: str, outcome: str, status: int
) -> None:
    endpoint = await office.endpoint(path)
    await office.happen()

    async with office.delivering():
        delivery = await office.settled(endpoint)

    [attempt] = delivery.attempts
    assert (attempt["outcome"], attempt["status"]) == (outcome, status)
    assert attempt["latency_ms"] >= 0
    assert delivery.status == ("delivered" if outcome == "delivered" else "waiting")
    assert office.receiver.of("moved") == [], "a redirect was followed"
    assert "not kept" not in json.dumps(office.row("webhook_delivery", delivery.id))


async def test_a_receiver_that_is_not_there_is_a_failed_connection(office: Office) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    endpoint = await office.endpoint()
    office.superuser.execute("UPDATE limner.webhook_endpoint SET url = %s WHERE id = %s", [f"{url}/x", endpoint.id])
    await office.happen()

    async with office.delivering(also=url):
        delivery = await office.settled(endpoint)

    assert [(a["outcome"], a["status"]) for a in delivery.attempts] == [("connect_failed", None)]
    assert delivery.status == "waiting"


async def test_ps3_a_destination_that_is_not_allowed_is_refused_when_it_is_sent(office: Office) -> None:
    """It may have been right when it was registered: the name means another address today."""
    endpoint = await office.endpoint()
    office.superuser.execute(
        "UPDATE limner.webhook_endpoint SET url = 'https://localhost/hook' WHERE id = %s", [endpoint.id]
    )
    await office.happen()

    async with office.delivering():
        delivery = await office.settled(endpoint)

    assert [(a["outcome"], a["status"]) for a in delivery.attempts] == [("destination_not_allowed", None)]
    assert delivery.status == "waiting"
    assert office.receiver.got == []


async def test_a_failure_is_tried_again_under_the_same_id_at_another_time(office: Office) -> None:
    endpoint = await office.endpoint("hook/500")
    await office.happen()

    async with office.delivering() as loop:
        for tries in (1, 2, 3):
            await office.settled(endpoint, tries)
            office.due_now(endpoint)
            loop.wake()
        await office.settled(endpoint, 4)

    got = office.receiver.of("hook")
    delivery = await office.only(endpoint)
    assert {one.id for one in got} == {f"msg_{delivery.id}"}
    assert [a["n"] for a in delivery.attempts] == [1, 2, 3, 4]


async def test_the_second_try_comes_after_five_seconds_give_or_take_a_fifth(office: Office) -> None:
    endpoint = await office.endpoint("hook/500")
    await office.happen()

    async with office.delivering():
        delivery = await office.settled(endpoint)

    assert delivery.next_at is not None
    [attempt] = delivery.attempts
    waits = delivery.next_at - _moment(attempt["at"])
    assert timedelta(seconds=3.9) <= waits <= timedelta(seconds=6.1)


async def test_retry_after_is_kept_to(office: Office) -> None:
    endpoint = await office.endpoint("hook/503?retry=7200")
    await office.happen()

    async with office.delivering():
        delivery = await office.settled(endpoint)

    assert delivery.next_at is not None
    waits = delivery.next_at - _moment(delivery.attempts[0]["at"])
    assert timedelta(seconds=7190) <= waits <= timedelta(seconds=7210)


async def test_the_tenth_failure_is_the_last(office: Office) -> None:
    endpoint = await office.endpoint("hook/500")
    await office.happen()
    office.superuser.execute(
        "UPDATE limner.webhook_delivery SET tries = 9, attempts = 9 WHERE endpoint_id = %s", [endpoint.id]
    )

    async with office.delivering():
        delivery = await office.settled(endpoint)

    assert (delivery.status, delivery.next_at) == ("failed", None)
    assert delivery.finished_at is not None
    assert (await office.again(endpoint)).is_enabled


async def test_a_body_of_a_jobs_course_says_what_the_event_knew(office: Office) -> None:
    endpoint = await office.endpoint(event_types=["job.started"])
    job_id, _ = await office.job()
    row = office.superuser.execute(
        "SELECT id FROM limner.event WHERE subject_id = %s AND type = 'job.started'", [job_id]
    ).fetchone()
    assert row is not None
    await office.place([row[0]])

    async with office.delivering():
        await office.settled(endpoint)

    told = json.loads(office.receiver.of("hook")[0].body)
    assert (told["type"], told["status"], told["data"]) == ("job.started", "running", {"job_id": str(job_id)})
    assert "outputs" not in told


async def test_the_same_end_is_recorded_once(office: Office) -> None:
    endpoint = await office.endpoint()
    await office.happen()
    [lease] = await office.claim()

    assert await office.end(lease, ended("http_5xx", 500)) == "recorded"
    assert await office.end(lease, ended("http_5xx", 500)) == "stale"

    assert len((await office.only(endpoint)).attempts) == 1


async def test_whoever_lost_the_lease_records_nothing(office: Office) -> None:
    endpoint = await office.endpoint()
    await office.happen()
    [lost] = await office.claim(lease_s=0.0)
    office.due_now(endpoint)
    [taken] = await office.claim()

    assert taken.delivery_id == lost.delivery_id
    assert taken.fence == lost.fence + 1
    assert await office.end(lost, ended("delivered", 200)) == "stale"
    assert (await office.only(endpoint)).attempts == []
    assert await office.end(taken, ended("delivered", 200)) == "recorded"


async def test_an_unknown_delivery_is_stale(office: Office) -> None:
    await office.endpoint()
    await office.happen()
    [lease] = await office.claim()

    assert await office.end(replace(lease, delivery_id=uuid4()), ended("delivered", 200)) == "stale"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
