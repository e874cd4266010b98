"""Reading, paging, waiting and cancelling, where no worker changes anything meanwhile."""

from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from yarl import URL

from limner.db.pools import Database
from limner.hub import runs
from limner.ledger import wallets
from limner.tenancy import api_keys, apps, end_users
from tests import acts
from tests.conftest import Tenant
from tests.running import Client

CANVAS = {"prompt": "a lighthouse"}


async def submitted(client: Client, count: int = 1) -> list[str]:
    return [(await client.generate("local/canvas", input=CANVAS)).json["job_id"] for _ in range(count)]


async def ids_of(client: Client, query: str = "") -> list[str]:
    answer = await client.call("GET", f"/api/v1/jobs{query}")
    assert answer.status == 200, answer.body
    return [job["job_id"] for job in answer.json["jobs"]]


async def second_app(db: Database, tenant: Tenant, **facts: Any) -> tuple[apps.App, str]:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        app = await apps.create(tx, "second", "Second", actor="test", **facts)
        return app, (await api_keys.create(tx, app, actor="test", scopes=api_keys.SCOPES))[1]


async def test_an_open_job_says_when_to_come_back_and_a_closed_one_does_not(client: Client) -> None:
    [job_id] = await submitted(client)

    waiting = await client.call("GET", f"/api/v1/jobs/{job_id}")
    await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    closed = await client.call("GET", f"/api/v1/jobs/{job_id}")

    assert waiting.json["status"] == "queued"
    assert int(waiting.headers["retry-after"]) >= 1
    assert "retry-after" not in closed.headers


async def test_an_etag_answers_304_until_something_changes(client: Client, db: Database) -> None:
    [job_id] = await submitted(client)
    path = f"/api/v1/jobs/{job_id}"
    tags = [(await client.call("GET", path)).headers["etag"]]

    unchanged = await client.call("GET", path, headers={"If-None-Match": tags[0]})
    assert (unchanged.status, unchanged.body, unchanged.headers["etag"]) == (304, b"", tags[0])
    assert int(unchanged.headers["retry-after"]) >= 1
    assert (await client.call("GET", path, headers={"If-None-Match": 'W/"other"'})).status == 200

    held = await acts.lease(db, UUID(job_id))
    await acts.start(db, held)
    tags.append((await client.call("GET", path, headers={"If-None-Match": tags[0]})).headers["etag"])
    async with db.system_tx("limner_dispatch", "a test reports progress") as tx:
        await runs.report_many(tx, [(held, 40, "painting")])
    halfway = await client.call("GET", path, headers={"If-None-Match": tags[1]})
    tags.append(halfway.headers["etag"])
    await acts.finish(db, held)
    done = await client.call("GET", path, headers={"If-None-Match": tags[2]})
    tags.append(done.headers["etag"])

    assert halfway.json["progress"] == {"percent": 40, "stage": "painting"}
    assert done.json["status"] == "succeeded"
    assert len(set(tags)) == 4
    assert (await client.call("GET", path, headers={"If-None-Match": f'W/"x", {tags[3]}'})).status == 304


async def test_a_list_is_paged_newest_first_and_every_job_stands_on_one_page(client: Client) -> None:
    made = await submitted(client, 7)

    seen, cursor, pages = [], "", 0
    while True:
        page = (await client.call("GET", f"/api/v1/jobs?limit=3{cursor}")).json
        seen += [job["job_id"] for job in page["jobs"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        assert page["next_cursor"] == seen[-1]
        cursor = f"&cursor={page['next_cursor']}"

    assert seen == made[::-1]
    assert pages == 3
    assert await ids_of(client) == seen
    assert await ids_of(client, "?limit=7") == seen
    assert (await client.call("GET", "/api/v1/jobs?limit=7")).json["next_cursor"] is None


async def test_twenty_jobs_stand_on_a_page_by_default_and_a_hundred_at_most(client: Client) -> None:
    made = await submitted(client, 101)

    assert await ids_of(client) == made[:80:-1]
    assert await ids_of(client, "?limit=100") == made[:0:-1]


async def test_a_list_is_filtered_by_state(client: Client) -> None:
    made = await submitted(client, 3)
    await client.call("POST", f"/api/v1/jobs/{made[1]}/cancel")

    assert await ids_of(client, "?status=cancelled") == [made[1]]
    assert await ids_of(client, "?status=queued") == [made[2], made[0]]
    assert await ids_of(client, "?status=queued&limit=1") == [made[2]]
    assert await ids_of(client, f"?status=queued&cursor={made[2]}") == [made[0]]
    assert await ids_of(client, "?status=succeeded") == []


@pytest.mark.parametrize(
    "query",
    [
        "?limit=0", "?limit=101", "?limit=-1", "?limit=1.0", "?limit=1e1", "?limit=", "?limit=%D9%A3", "?limit=1%00",
        "?limit=0x10", "?limit=9999999999999999999999", "?status=done", "?status=QUEUED", "?status=%00", "?cursor=1",
        "?cursor=%00", "?cursor=../../etc", "?cursor=" + "a" * 36, "?cursor=" + "0123456789abcdef" * 2 + "----",
        "?cursor=%7B" + "a" * 34 + "%7D", "?status=",
    ],
)  # fmt: skip
async def test_a_query_that_makes_no_sense_answers_400_with_its_pointer(client: Client, query: str) -> None:
    answer = await client.call("GET", f"/api/v1/jobs{query}")

    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert list(answer.json["details"]) == ["/" + query[1:].partition("=")[0]]


async def test_with_a_user_id_that_users_jobs_are_listed_and_without_it_the_apps(
    client: Client, db: Database, tenant: Tenant
) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await wallets.top_up(tx, 10_000, "test", ref="own")
    await acts.grant(db, tenant, 5000, user="bob")
    of = {}
    for user in ("ann", "bob", None):
        client.user = user
        of[user] = (await submitted(client))[0]

    client.user = "ann"
    assert await ids_of(client) == [of["ann"]]
    client.user = "bob"
    assert await ids_of(client) == [of["bob"]]
    client.user = "nobody"
    assert await ids_of(client) == []
    client.user = None
    assert await ids_of(client) == [of[None], of["bob"], of["ann"]]


async def test_with_a_user_id_another_users_job_is_absent(client: Client, db: Database, tenant: Tenant) -> None:
    [job_id] = await submitted(client)
    await acts.grant(db, tenant, 5000, user="bob")

    client.user = "bob"
    for method, path in (("GET", ""), ("GET", "/receipt"), ("POST", "/cancel")):
        foreign = await client.call(method, f"/api/v1/jobs/{job_id}{path}")
        absent = await client.call(method, f"/api/v1/jobs/{uuid4()}{path}")
        assert (foreign.status, foreign.json["code"]) == (404, "job_not_found")
        assert {**foreign.json, "request_id": 0} == {**absent.json, "request_id": 0}
    for path in ("/api/v1/users/ann", "/api/v1/users/nobody"):
        assert (await client.call("GET", path)).json["code"] == "user_not_found"
    assert (await client.call("POST", "/api/v1/users/ann/tokens", {"amount": 1})).status == 404

    client.user = None
    assert (await client.call("GET", f"/api/v1/jobs/{job_id}")).json["status"] == "queued"
    assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 999


async def test_another_app_of_the_organization_sees_none_of_it(client: Client, db: Database, tenant: Tenant) -> None:
    [job_id] = await submitted(client)
    _, client.api_key = await second_app(db, tenant)

    for user in ("ann", None):
        client.user = user
        assert await ids_of(client) == []
        assert (await client.call("GET", f"/api/v1/jobs/{job_id}")).status == 404
        assert (await client.call("GET", "/api/v1/users/ann")).status == 404


async def test_a_queued_job_is_cancelled_at_once_and_its_credits_are_back(client: Client) -> None:
    [job_id] = await submitted(client)

    first = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    again = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    job = (await client.call("GET", f"/api/v1/jobs/{job_id}")).json

    assert (first.status, first.json) == (200, {"job_id": job_id, "status": "cancelled"})
    assert (again.status, again.json) == (200, {"job_id": job_id, "status": "already_cancelled"})
    assert (job["status"], job["error"]["code"], job["tokens_charged"]) == ("cancelled", "cancelled", 0)
    assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 1000


async def test_a_job_that_a_worker_holds_is_asked_to_stop(client: Client, db: Database) -> None:
    [job_id] = await submitted(client)
    held = await acts.lease(db, UUID(job_id), lease_s=30)
    await acts.start(db, held)

    answer = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")

    assert (answer.status, answer.json) == (202, {"job_id": job_id, "status": "requested"})
    job = (await client.call("GET", f"/api/v1/jobs/{job_id}")).json
    assert (job["status"], job["cancel_requested"]) == ("running", True)
    await acts.finish(db, held, "failed")
    late = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    assert (late.status, late.json["code"]) == (409, "already_failed")


async def test_a_grant_has_the_fields_of_the_specification(client: Client) -> None:
    client.user = None

    first = await client.call(
        "POST", "/api/v1/users/new/tokens", {"amount": 100, "reason": "Monthly subscription renewal"}
    )
    second = await client.call("POST", "/api/v1/users/new/tokens", {"amount": 45})

    assert first.status == 200
    assert first.json == {
        "external_id": "new", "previous_balance": 0, "amount_added": 100, "new_balance": 100,
        "transaction_id": str(UUID(first.json["transaction_id"])),
    }  # fmt: skip
    assert (second.json["previous_balance"], second.json["new_balance"]) == (100, 145)
    assert second.json["transaction_id"] != first.json["transaction_id"]
    assert (await client.call("GET", "/api/v1/users/new")).json["token_balance"] == 145


async def test_reading_never_makes_a_user(client: Client, db: Database, tenant: Tenant) -> None:
    client.user = None
    for path in ("/api/v1/users/ghost", "/api/v1/jobs", "/api/v1/models"):
        await client.call("GET", path, headers={} if "users" in path else {"X-User-ID": "ghost"})

    assert (await client.call("GET", "/api/v1/users/ghost")).status == 404
    async with db.tenant_tx(tenant.org_id) as tx:
        assert [u.external_id for u in await end_users.list_of_app(tx, tenant.app.id)] == ["ann"]


@pytest.mark.parametrize(
    "external_id",
    [
        "a/b",
        "a/tokens",
        "tokens",
        "..",
        ".",
        "a%2Fb",
        "%",
        "Zoë",
        "用户",
        "a b",
        "a?b#c",
        "auth0|5f7c",
        "a+b@c.de",
        "🦊",
    ],
)
async def test_any_printable_id_names_one_user_in_header_and_path(client: Client, external_id: str) -> None:
    client.user = None
    path = f"/api/v1/users/{quote(external_id, safe='')}"
    granted = await client.http.request(
        "POST", URL(client.url + path + "/tokens", encoded=True), json={"amount": 3},
        headers={"X-API-Key": client.api_key or ""},
    )  # fmt: skip
    assert granted.status == 200, await granted.text()
    assert (await granted.json())["external_id"] == external_id
    got = await client.http.request(
        "GET", URL(client.url + path, encoded=True), headers={"X-API-Key": client.api_key or ""}
    )
    assert (await got.json())["token_balance"] == 3
    client.user = external_id
    made = await client.generate("local/canvas", input=CANVAS)
    assert made.json["user_balance"] == 2
    assert (await client.call("GET", f"/api/v1/jobs/{made.json['job_id']}")).json["user_id"] == external_id
