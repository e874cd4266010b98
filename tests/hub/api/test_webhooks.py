"""`/api/v1/webhooks`: an app manages its own, reads what was sent, sends again; secrets are shown where they are meant to be."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from limner.db.pools import Database
from limner.events import deliveries, log
from limner.events.deliveries import Ended, Outcome
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.hub.api.refusing import Refusing
from tests.hub.api.test_reading import second_app
from tests.running import Api, Client

WEBHOOKS = "/api/v1/webhooks"
URL = "https://hooks.example.com/limner"
SINCE = (datetime.now(UTC) - timedelta(hours=2)).isoformat()


async def added(client: Client, url: str = URL, **facts: Any) -> Any:
    answer = await client.call("POST", WEBHOOKS, {"url": url, **facts})
    assert answer.status == 201, answer.body
    assert answer.headers["location"] == f"{WEBHOOKS}/{answer.json['id']}"
    return answer.json


async def owed(db: Database, tenant: Tenant, jobs: int = 1) -> list[UUID]:
    """Jobs that ended, and their events placed as the relay does it."""
    ended = []
    for _ in range(jobs):
        job_id = (await acts.submit(db, tenant)).job_id
        await acts.work(db, job_id)
        ended.append(job_id)
        async with db.tenant_tx(tenant.org_id) as tx:
            events = await log.list_of_subject(tx, job_id)
        async with db.system_tx("limner_dispatch", "a test places events") as tx:
            await tx.all(
                "SELECT limner.queue_deliveries(%s::uuid[], %s::uuid[])",
                [[tenant.org_id] * len(events), [event.id for event in events]],
            )
    return ended


async def tried(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, outcome: Outcome, again_s: float | None
) -> int:
    """One try of everything that is due in this organization; how many that were."""
    superuser.execute("UPDATE limner.webhook_endpoint SET turn_at = NULL WHERE org_id <> %s", [tenant.org_id])
    count = 0
    while True:
        async with db.system_tx("limner_dispatch", "a test claims") as tx:
            leases = await deliveries.claim(tx, "test", 64, 60, 4)
        if not leases:
            return count
        for lease in leases:
            async with db.tenant_single(tenant.org_id, "limner_worker") as tx:
                await deliveries.end(tx, lease, Ended(outcome, None, 7, again_s), 86_400)
            count += 1


async def test_a_webhook_from_its_making_to_its_end(client: Client) -> None:
    made = await added(client, description="Orders", event_types=["job.completed"], ed25519=True)
    one = f"{WEBHOOKS}/{made['id']}"

    assert made["secret"].startswith("whsec_")
    assert made["public_key"].startswith("whpk_")
    assert (made["kind"], made["enabled"], made["event_types"]) == ("extra", True, ["job.completed"])
    shown = (await client.call("GET", one)).json
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    changed = await client.call(
        "PATCH", one, {"url": f"{URL}/2", "event_types": [], "enabled": False, "description": "x"}
    )
    assert (changed.status, changed.json["url"], changed.json["event_types"]) == (200, f"{URL}/2", [])
    assert (changed.json["enabled"], changed.json["disabled_reason"]) == (False, "by_hand")
    on = await client.call("PATCH", one, {"enabled": True})
    assert (on.json["enabled"], on.json["disabled_reason"]) == (True, None)
    assert (await client.call("DELETE", one)).status == 204
    assert (await client.call("GET", one)).json["code"] == "webhook_not_found"
    assert (await client.call("DELETE", one)).status == 404
    await added(client, f"{URL}/2")


async def test_the_apps_own_webhook_is_there_from_the_first_look_and_stays(client: Client) -> None:
    await added(client)

    [own, extra] = (await client.call("GET", WEBHOOKS)).json["webhooks"]
    again = (await client.call("GET", WEBHOOKS)).json["webhooks"]

    assert (own["kind"], own["url"], extra["kind"]) == ("app", None, "extra")
    assert [one["id"] for one in again] == [own["id"], extra["id"]]
    one = f"{WEBHOOKS}/{own['id']}"
    assert (await client.call("GET", f"{one}/secret")).json["secret"].startswith("whsec_")
    refused = await client.call("DELETE", one)
    assert (refused.status, refused.json["code"]) == (409, "default_webhook")
    assert (await client.call("PATCH", one, {"url": f"{URL}/own"})).json["url"] == f"{URL}/own"
    assert (await client.call("PATCH", one, {"url": None})).json["url"] is None


async def test_a_secret_is_rotated_with_an_overlap(client: Client) -> None:
    made = await added(client)
    one = f"{WEBHOOKS}/{made['id']}"

    rotated = (await client.call("POST", f"{one}/rotate")).json
    told = (await client.call("GET", f"{one}/secret")).json

    assert rotated["secret"] != made["secret"]
    assert (told["secret"], told["previous"]) == (rotated["secret"], made["secret"])
    until = datetime.fromisoformat(told["previous_until"])
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=24, minutes=1)


async def test_secrets_are_in_no_other_answer_and_in_no_log(
    client: Client, api: Api, db: Database, tenant: Tenant
) -> None:
    made = await added(client)
    one = f"{WEBHOOKS}/{made['id']}"
    rotated = (await client.call("POST", f"{one}/rotate")).json
    [job_id] = await owed(db, tenant)

    answers = [
        await client.call("GET", WEBHOOKS),
        await client.call("GET", one),
        await client.call("PATCH", one, {"description": "y"}),
        await client.call("GET", f"{one}/deliveries"),
        await client.call("GET", f"/api/v1/jobs/{job_id}/receipt"),
    ]

    said = " ".join([*(answer.body.decode() for answer in answers), api.output()])
    assert all(answer.status == 200 for answer in answers)
    for secret in (made["secret"], rotated["secret"]):
        assert secret.removeprefix("whsec_")[:20] not in said


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/url"), ({"url": 1}, "/url"), ({"url": ""}, "/url"), ({"url": "x" * 2049}, "/url"),
        ({"url": URL, "secret": "mine"}, "/secret"), ({"url": URL, "event_types": ["job.dreamt"]}, "/event_types/0"),
        ({"url": URL, "event_types": ["job.failed"] * 2}, "/event_types"),
        ({"url": URL, "description": "x" * 501}, "/description"), ({"url": URL, "ed25519": "yes"}, "/ed25519"),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_is_refused_with_a_pointer(
    refusing: Refusing, body: dict[str, Any], pointer: str
) -> None:
    answer = await refusing.post(body, WEBHOOKS)

    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert pointer in answer.json["details"]


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/", "https://127.0.0.1/", "https://localhost/", "https://10.0.0.1/x", "https://[::1]/",
        "https://user:pass@hooks.example.com/", "https://hooks.example.com:22/", "ftp://hooks.example.com/", "hooks.example.com",
    ],
)  # fmt: skip
async def test_ps3_a_url_that_nothing_would_be_sent_to_is_not_registered(refusing: Refusing, url: str) -> None:
    answer = await refusing.post({"url": url}, WEBHOOKS)

    assert (answer.status, answer.json["code"]) == (400, "destination_not_allowed")
    assert list(answer.json["details"]) == ["/url"]


async def test_ps3_nor_is_a_webhook_moved_there(client: Client, refusing: Refusing) -> None:
    made = await added(client)

    answer = await refusing.call("PATCH", f"{WEBHOOKS}/{made['id']}", {"url": "https://192.168.0.1/"})

    assert (answer.status, answer.json["code"]) == (400, "destination_not_allowed")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [({}, ""), ({"url": None}, "/url"), ({"kind": "app"}, "/kind"), ({"enabled": None}, "/enabled")],
)
async def test_a_change_that_cannot_be_is_refused(
    client: Client, refusing: Refusing, change: Any, pointer: str
) -> None:
    made = await added(client)

    answer = await refusing.call("PATCH", f"{WEBHOOKS}/{made['id']}", change)

    assert (answer.status, list(answer.json["details"])) == (400, [pointer])


async def test_one_url_is_one_webhook(client: Client, refusing: Refusing) -> None:
    made = await added(client)
    other = await added(client, f"{URL}/other")

    again = await refusing.post({"url": URL}, WEBHOOKS)
    moved = await refusing.call("PATCH", f"{WEBHOOKS}/{other['id']}", {"url": URL})

    assert (again.status, again.json["code"]) == (409, "webhook_exists")
    assert made["id"] in again.json["details"]["/url"][0]
    assert (moved.status, moved.json["code"]) == (409, "webhook_exists")


async def test_an_app_has_twenty_also_when_all_are_asked_for_at_once(
    client: Client, superuser: psycopg.Connection
) -> None:
    answers = await acts.together(
        [lambda n=n: client.call("POST", WEBHOOKS, {"url": f"{URL}/{n}"}) for n in range(30)]  # type: ignore[misc]
    )

    assert sorted(answer.status for answer in answers) == [201] * 20 + [409] * 10
    assert {a.json["code"] for a in answers if a.status == 409} == {"too_many_webhooks"}
    assert len((await client.call("GET", WEBHOOKS)).json["webhooks"]) == 21


async def test_another_apps_webhooks_and_deliveries_are_absent(
    client: Client, db: Database, tenant: Tenant, make_tenant: MakeTenant, refusing: Refusing
) -> None:
    made = await added(client)
    await owed(db, tenant)
    [delivery] = (await client.call("GET", f"{WEBHOOKS}/{made['id']}/deliveries")).json["deliveries"]
    _, sibling_key = await second_app(db, tenant)

    for key in (sibling_key, (await make_tenant()).api_key):
        refusing.client.api_key = key
        for method, path, body in (
            ("GET", "", None), ("PATCH", "", {"enabled": False}), ("DELETE", "", None), ("POST", "/rotate", None), ("GET", "/secret", None),
            ("GET", "/deliveries", None), ("POST", "/redeliver", {"since": SINCE}),
        ):  # fmt: skip
            for webhook_id in (made["id"], str(uuid4()), "nothing"):
                answer = await refusing.call(method, f"{WEBHOOKS}/{webhook_id}{path}", body)
                assert (answer.status, answer.json["code"]) == (404, "webhook_not_found"), (method, path)
        for delivery_id in (delivery["id"], f"msg_{delivery['id']}", str(uuid4()), "nothing"):
            answer = await refusing.call("POST", f"{WEBHOOKS}/deliveries/{delivery_id}/redeliver")
            assert (answer.status, answer.json["code"]) == (404, "delivery_not_found")


async def test_deliveries_are_paged_and_filtered_and_tell_every_try(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    made = await added(client)
    path = f"{WEBHOOKS}/{made['id']}/deliveries"
    await owed(db, tenant, 3)
    assert await tried(db, tenant, superuser, "timeout", 60.0) == 3
    await owed(db, tenant, 2)

    seen: list[Any] = []
    cursor = ""
    while True:
        page = (await client.call("GET", f"{path}?limit=2{cursor}")).json
        seen += page["deliveries"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert len({one["id"] for one in seen}) == len(seen) == 5
    assert [len(one["attempts"]) for one in seen] == [0, 0, 1, 1, 1]
    assert {one["status"] for one in seen} == {"waiting"}
    attempt = seen[-1]["attempts"][0]
    assert (attempt["n"], attempt["outcome"], attempt["status"], attempt["latency_ms"]) == (1, "timeout", None, 7)
    assert len((await client.call("GET", f"{path}?status=waiting")).json["deliveries"]) == 5
    assert (await client.call("GET", f"{path}?status=failed")).json["deliveries"] == []
    for wrong in ("lost", ""):
        assert (await client.call("GET", f"{path}?status={wrong}")).status == 400


async def test_one_delivery_is_sent_again(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    made = await added(client)
    await owed(db, tenant)
    await tried(db, tenant, superuser, "http_5xx", None)
    [failed] = (await client.call("GET", f"{WEBHOOKS}/{made['id']}/deliveries?status=failed")).json["deliveries"]

    answer = await client.call("POST", f"{WEBHOOKS}/deliveries/msg_{failed['id']}/redeliver")

    assert (answer.status, answer.json) == (202, {"id": failed["id"], "status": "waiting"})
    assert await tried(db, tenant, superuser, "delivered", None) == 1
    [now] = (await client.call("GET", f"{WEBHOOKS}/{made['id']}/deliveries")).json["deliveries"]
    assert (now["id"], now["status"], [a["outcome"] for a in now["attempts"]]) == (
        failed["id"], "delivered", ["http_5xx", "delivered"],
    )  # fmt: skip


async def test_what_was_missed_is_sent_again_and_what_arrived_only_when_asked_for(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    """Before it was there, while it failed, while it was off: all of that is missed."""
    await owed(db, tenant)
    made = await added(client)
    one = f"{WEBHOOKS}/{made['id']}"
    await owed(db, tenant)
    await tried(db, tenant, superuser, "http_5xx", None)
    await owed(db, tenant)
    await tried(db, tenant, superuser, "delivered", None)
    await client.call("PATCH", one, {"enabled": False})
    await owed(db, tenant)
    off = await client.call("POST", f"{one}/redeliver", {"since": SINCE})
    await client.call("PATCH", one, {"enabled": True})

    missed = await client.call("POST", f"{one}/redeliver", {"since": SINCE})
    sent = await tried(db, tenant, superuser, "delivered", None)
    everything = await client.call("POST", f"{one}/redeliver", {"since": SINCE, "everything": True})

    assert (off.status, off.json["code"]) == (409, "webhook_disabled")
    assert (missed.status, missed.json) == (202, {"queued": 3, "next_cursor": None})
    assert sent == 3
    assert everything.json == {"queued": 4, "next_cursor": None}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/since"), ({"since": "yesterday"}, "/since"), ({"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "/until"),
        ({"since": "2026-01-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}, "/since"),
        ({"since": SINCE, "cursor": "x"}, "/cursor"), ({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}, "/since"),
        ({"since": "0001-01-01T00:00:00Z", "until": "0001-01-02T00:00:00Z", "everything": "all"}, "/everything"),
    ],
)  # fmt: skip
async def test_a_span_that_cannot_be_is_refused(client: Client, refusing: Refusing, body: Any, pointer: str) -> None:
    made = await added(client)

    answer = await refusing.post(body, f"{WEBHOOKS}/{made['id']}/redeliver")

    assert (answer.status, list(answer.json["details"])) == (400, [pointer])


async def test_a_span_of_which_deliveries_are_forgotten_is_refused(client: Client) -> None:
    made = await added(client)
    body = {"since": "0001-01-02T00:00:00Z", "until": "0001-01-03T00:00:00Z"}

    answer = await client.call("POST", f"{WEBHOOKS}/{made['id']}/redeliver", body)

    assert (answer.status, list(answer.json["details"])) == (400, ["/since"])
    assert "30 days" in answer.json["details"]["/since"][0]


async def test_removed_webhooks_stay_on_receipts_and_send_nothing(client: Client, db: Database, tenant: Tenant) -> None:
    made = await added(client)
    [job_id] = await owed(db, tenant)
    waiting = (await client.call("GET", f"/api/v1/jobs/{job_id}/receipt")).json["webhooks"]
    await client.call("DELETE", f"{WEBHOOKS}/{made['id']}")

    [sent] = (await client.call("GET", f"/api/v1/jobs/{job_id}/receipt")).json["webhooks"]

    assert [one["status"] for one in waiting] == ["waiting"]
    assert (sent["webhook_id"], sent["status"], sent["next_attempt_at"]) == (made["id"], "failed", None)
