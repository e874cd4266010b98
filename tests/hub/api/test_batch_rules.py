"""What a batch is held to before anything is stored: items, credits, limits, its key; and its place in line."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.api.refusing import PICTURE, Refusing
from tests.media.sending import Sender
from tests.running import Api, Client
from tests.web import stored
from tests.web.pictures import png

BATCHES = "/api/v1/batches"
ITEM: dict[str, Any] = {"input": {"prompt": "a hare"}}


def asked(count: int, **fields: Any) -> dict[str, Any]:
    return {"model": "local/canvas", "items": [ITEM] * count, **fields}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"model": "local/canvas"}, "/items"), (asked(0), "/items"), (asked(1001), "/items"),
     ({"items": [ITEM]}, "/items/0/model"), ({"items": [{**ITEM, "model": "none/such"}]}, "/items/0/model"),
     ({"model": "local/canvas", "items": [ITEM] * 17 + [{"input": {"prompt": 5}}]}, "/items/17/input/prompt"),
     ({"model": "local/canvas", "items": [ITEM, {"input": {}, "priority": 3}]}, "/items/1/priority"),
     ({"model": "local/canvas", "items": [ITEM, "no"]}, "/items/1"),
     ({"model": "local/describe", "items": [{"input": {"images": [PICTURE]}}]}, "/items/0/input/images/0"),
     ({"model": "local/describe", "items": [{"input": {"images": ["upload:nothing"]}}]}, "/items/0/input/images/0"),
     ({"model": "local/describe", "items": [{"input": {"images": ["http://10.0.0.1/x"]}}]}, "/items/0/input/images/0"),
     (asked(1, priority=0), "/priority"), (asked(1, run_at="soon"), "/run_at"), (asked(1, unknown=1), "/unknown"),
     (asked(1, webhook_url="http://example.com"), "/webhook_url")],
)  # fmt: skip
async def test_a_batch_with_something_wrong_is_refused_whole_and_says_where(
    refusing: Refusing, body: dict[str, Any], pointer: str
) -> None:
    answer = await refusing.post(body, BATCHES)

    assert answer.status == 400, answer.body
    assert pointer in answer.json["details"]


async def test_what_is_wrong_is_told_of_several_items_but_not_of_a_thousand(refusing: Refusing) -> None:
    few = await refusing.post({"model": "local/canvas", "items": [ITEM, {"input": {"prompt": 1}}, ITEM, {}]}, BATCHES)
    many = await refusing.post({"model": "local/canvas", "items": [{}] * 1000}, BATCHES)

    assert (few.json["code"], list(few.json["details"])) == (
        "invalid_items",
        ["/items/1/input/prompt", "/items/3/input"],
    )
    assert len(many.json["details"]) == 20


async def test_one_credit_short_and_nothing_is_held(
    refusing: Refusing, client: Client, tenant: Tenant, superuser: psycopg.Connection, db: Database
) -> None:
    superuser.execute(
        "UPDATE limner.wallet SET available_mc = 29000 WHERE org_id = %s AND id <> org_id", [tenant.org_id]
    )

    short = await refusing.post(asked(30), BATCHES)
    owing = await _owing(refusing, superuser, tenant)
    enough = await client.call("POST", BATCHES, asked(29))

    assert (short.status, short.json["code"], short.json["balance"], short.json["required"]) == (
        402,
        "insufficient_tokens",
        29,
        30,
    )
    assert (owing.status, owing.json["owed"]) == (402, 1)
    assert (enough.status, enough.json["tokens_held"], enough.json["user_balance"]) == (202, 29, 0)
    held = acts.count(superuser, "SELECT sum(hold_mc) FROM limner.job_queue WHERE org_id = %s", tenant.org_id)
    assert held == 29 * MC == (await acts.wallet(db, tenant)).held_mc


async def _owing(refusing: Refusing, superuser: psycopg.Connection, tenant: Tenant) -> Any:
    owes = "UPDATE limner.wallet SET owed_mc = %s WHERE org_id = %s AND id <> org_id"
    superuser.execute(owes, [1, tenant.org_id])
    answer = await refusing.post(asked(3), BATCHES)
    superuser.execute(owes, [0, tenant.org_id])
    return answer


async def test_a_user_is_made_by_its_first_batch_and_not_by_one_that_is_refused(
    client: Client, make_tenant: MakeTenant, superuser: psycopg.Connection, db: Database
) -> None:
    tenant = await make_tenant(welcome_mc=5 * MC, credits=0)
    client.api_key, client.user = tenant.api_key, "newcomer"
    before = stored.rows(superuser, tenant.org_id)

    refused = await client.call("POST", BATCHES, asked(6))
    after = stored.rows(superuser, tenant.org_id)
    taken = await client.call("POST", BATCHES, asked(5))

    assert (refused.status, after == before) == (402, True)
    assert (taken.status, taken.json["user_balance"]) == (202, 0)
    assert await acts.books(db, tenant.org_id) == {}


async def test_an_organization_pays_for_a_batch_without_a_user(
    client: Client, make_tenant: MakeTenant, db: Database
) -> None:
    tenant = await make_tenant(wallet_credits=10)
    client.api_key, client.user = tenant.api_key, None

    taken = await client.call("POST", BATCHES, asked(7))
    refused = await client.call("POST", BATCHES, asked(4))

    assert (taken.status, taken.json["user_balance"]) == (202, 3)
    assert (refused.status, refused.json["code"]) == (402, "insufficient_organization_tokens")
    assert await acts.books(db, tenant.org_id) == {}


async def test_the_same_key_is_the_same_batch_however_often_it_comes(
    client: Client, tenant: Tenant, superuser: psycopg.Connection, db: Database
) -> None:
    key = {"Idempotency-Key": "once"}
    answers = await asyncio.gather(*(client.call("POST", BATCHES, asked(20), headers=key) for _ in range(8)))
    in_body = await client.call("POST", BATCHES, asked(20, idempotency_key="once"))
    changed = [
        await client.call("POST", BATCHES, asked(20), headers=key | {"Cancel-After": "5m"}),
        await client.call("POST", BATCHES, asked(19), headers=key),
        await client.call("POST", BATCHES, asked(20, priority=51), headers=key),
    ]
    single = await client.call("POST", "/api/v1/generate", {"model": "local/canvas", **ITEM}, headers=key)

    assert [a.status for a in (*answers, in_body)] == [202] * 9
    assert all(a.json == answers[0].json for a in (*answers, in_body))
    assert sorted(a.headers.get("idempotent-replayed", "") for a in answers) == [""] + ["true"] * 7
    assert [(a.status, a.json["code"]) for a in changed] == [(422, "idempotency_key_reused")] * 3
    assert single.status == 202, "a key belongs to one endpoint"
    assert acts.count(superuser, "SELECT count(*) FROM limner.job WHERE org_id = %s", tenant.org_id) == 21
    assert (await acts.wallet(db, tenant)).held_mc == 21 * MC


async def test_a_replay_answers_also_when_the_wallet_is_empty(client: Client, make_tenant: MakeTenant) -> None:
    client.api_key = (await make_tenant(credits=3)).api_key

    first = await client.call("POST", BATCHES, asked(3, idempotency_key="all"))
    second = await client.call("POST", BATCHES, asked(3, idempotency_key="all"))

    assert (first.status, first.json) == (second.status, second.json)


async def test_credits_that_end_are_drawn_for_all_items_as_one_after_the_other_would(
    client: Client, make_tenant: MakeTenant, db: Database, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=4)
    client.api_key = tenant.api_key
    soon = datetime.now(UTC) + timedelta(days=1)
    for amount, days in ((2500, 3), (1700, 2), (900, 1)):
        await acts.grant(db, tenant, amount, expires_at=soon + timedelta(days=days))

    taken = await client.call("POST", BATCHES, asked(6))
    drawn = superuser.execute(
        "SELECT i.place, d.amount_mc FROM limner.batch_item i JOIN limner.lot_draw d ON d.org_id = i.org_id AND d.job_id = i.job_id"
        " JOIN limner.lot l ON l.org_id = d.org_id AND l.id = d.lot_id WHERE i.org_id = %s ORDER BY i.place, l.expires_at",
        [tenant.org_id],
    ).fetchall()

    assert taken.status == 202
    assert drawn == [(0, 900), (0, 100), (1, 1000), (2, 600), (2, 400), (3, 1000), (4, 1000), (5, 100)]
    assert await acts.books(db, tenant.org_id) == {}
    cancelled = await client.call("POST", f"{BATCHES}/{taken.json['batch_id']}/cancel")
    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
    assert [lot.remaining_mc for lot in await acts.open_lots(db, tenant)] == [900, 1700, 2500]
    assert await acts.books(db, tenant.org_id) == {}


async def test_each_item_counts_in_a_bucket_of_the_batches_own(
    client: Client, refusing: Refusing, superuser: psycopg.Connection, tenant: Tenant
) -> None:
    superuser.execute("UPDATE limner.app SET user_jobs_per_min = 10 WHERE org_id = %s", [tenant.org_id])

    small = [(await client.call("POST", BATCHES, asked(4))).status for _ in range(3)]
    refused = await refusing.post(asked(1), BATCHES)
    single = await client.call("POST", "/api/v1/generate", {"model": "local/canvas", **ITEM})

    assert small == [202] * 3, "a batch passes while there is a token, and takes more than there are"
    assert (refused.status, refused.json["limit"], refused.json["limit_size"]) == (429, "user", 10)
    assert 12 < refused.json["retry_after"] <= 18, "what it took too much comes back first"
    assert single.status == 202, "single jobs have their own"


async def test_open_jobs_are_counted_with_the_items(
    client: Client, refusing: Refusing, superuser: psycopg.Connection, tenant: Tenant
) -> None:
    superuser.execute("UPDATE limner.organization SET max_open = 10 WHERE org_id = %s", [tenant.org_id])

    taken = await client.call("POST", BATCHES, asked(7))
    refused = await refusing.post(asked(4), BATCHES)

    assert (taken.status, refused.status, refused.json["limit"]) == (202, 429, "open_jobs")
    assert (await client.call("POST", BATCHES, asked(3))).status == 202


async def test_an_apps_single_jobs_go_before_its_batch(
    client: Client, db: Database, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    batch_id = (await client.call("POST", BATCHES, asked(50))).json["batch_id"]
    before = await acts.claim(db, 2)
    single = (await client.call("POST", "/api/v1/generate", {"model": "local/canvas", **ITEM})).json["job_id"]
    after = await acts.claim(db, 3)
    items = (await client.call("GET", f"{BATCHES}/{batch_id}/items?limit=4")).json["items"]

    assert [str(held.job_id) for held in before] == [item["job_id"] for item in items[:2]]
    assert str(after[0].job_id) == single
    assert {str(held.job_id) for held in after[1:]} == {item["job_id"] for item in items[2:]}


async def test_another_organization_has_its_share_beside_a_batch(
    client: Client, make_tenant: MakeTenant, db: Database, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    await client.call("POST", BATCHES, asked(50, priority=1))
    other = await make_tenant()
    theirs = [(await acts.submit(db, other)).job_id for _ in range(3)]

    claimed = [held.job_id for held in await acts.claim(db, 6)]

    assert set(theirs) <= set(claimed)


async def test_a_batch_for_later_waits_and_is_cancelled_at_once(client: Client, db: Database, tenant: Tenant) -> None:
    later = (datetime.now(UTC) + timedelta(hours=3)).isoformat()
    batch_id = (await client.call("POST", BATCHES, asked(120, run_at=later))).json["batch_id"]

    cancelled = await client.call("POST", f"{BATCHES}/{batch_id}/cancel")
    body = (await client.call("GET", f"{BATCHES}/{batch_id}")).json

    assert (cancelled.status, cancelled.json) == (200, {"batch_id": batch_id, "status": "cancelled"})
    assert (body["status"], body["progress"]["cancelled"], body["tokens_charged"]) == ("cancelled", 120, 0)
    assert (await acts.wallet(db, tenant)).available_mc == 1000 * MC
    assert await acts.books(db, tenant.org_id) == {}


async def test_the_batchs_end_is_owed_to_the_url_that_it_named_and_to_webhooks_that_ask_for_it(
    client: Client, db: Database
) -> None:
    later = (datetime.now(UTC) + timedelta(hours=3)).isoformat()
    hook = {"url": "https://hooks.example.com/batches", "event_types": ["batch.completed", "batch.cancelled"]}
    app = Client(client.http, client.url, client.api_key, user=None)
    assert (await app.call("POST", "/api/v1/webhooks", hook)).status == 201
    named = asked(3, run_at=later, webhook_url="https://hooks.example.com/mine")
    batch_id = (await client.call("POST", BATCHES, named)).json["batch_id"]

    await client.call("POST", f"{BATCHES}/{batch_id}/cancel")
    await acts.relay(db)
    receipt = (await client.call("GET", f"{BATCHES}/{batch_id}/receipt")).json

    owed = sorted((delivery["to"], delivery["event"]) for delivery in receipt["webhooks"])
    assert owed == [("request", "batch.cancelled"), ("webhook", "batch.cancelled")]


async def test_batches_are_listed_newest_first_by_app_and_by_user(
    client: Client, http: Any, api: Api, tenant: Tenant
) -> None:
    made = [(await client.call("POST", BATCHES, asked(n))).json["batch_id"] for n in (1, 2, 3)]
    app = Client(http, api.url, tenant.api_key, user=None)
    stranger = Client(http, api.url, tenant.api_key, user="ben")

    first = (await client.call("GET", f"{BATCHES}?limit=2")).json
    second = (await client.call("GET", f"{BATCHES}?limit=2&cursor={first['next_cursor']}")).json

    assert [batch["batch_id"] for batch in (*first["batches"], *second["batches"])] == made[::-1]
    assert (second["next_cursor"], first["batches"][0]["total"]) == (None, 3)
    assert [batch["batch_id"] for batch in (await app.call("GET", BATCHES)).json["batches"]] == made[::-1]
    assert (await stranger.call("GET", BATCHES)).json["batches"] == []
    assert (await stranger.call("GET", f"{BATCHES}/{made[0]}")).status == 404


@pytest.mark.parametrize("query", ["cursor=x", "cursor=-1", "limit=0", "status=", "status=done", "cursor=1234567890"])
async def test_a_page_of_items_that_is_none_is_refused(client: Client, query: str) -> None:
    batch_id = (await client.call("POST", BATCHES, asked(1))).json["batch_id"]

    answer = await client.call("GET", f"{BATCHES}/{batch_id}/items?{query}")

    assert answer.status == 400


@pytest.fixture(scope="module")
def narrow(server: Server, db: Database) -> Iterator[Api]:
    """An API that takes little at once."""
    less = {"MAX_BATCH_BODY_BYTES": "2000", "MAX_BATCH_ITEMS": "5", "MAX_GENERATE_BODY_BYTES": "500"}
    api = Api(server.home, LIMNER_DATABASE_URL=server.url, **{f"LIMNER_{name}": value for name, value in less.items()})
    yield api
    api.stop()


async def test_a_body_that_is_too_large_for_a_batch_is_refused(narrow: Api, client: Client) -> None:
    client.url = narrow.url
    large = await client.call("POST", BATCHES, asked(100))
    many = await client.call("POST", BATCHES, asked(6))
    fits = await client.call("POST", BATCHES, asked(5))

    assert (large.status, large.json["limit_bytes"]) == (413, 2000)
    assert (many.status, many.json["details"]) == (400, {"/items": ["has 6 items; at most 5"]})
    assert fits.status == 202


async def test_uploads_are_pictures_of_a_batch_within_bounds(
    client: Client, narrow: Api, server: Server, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    picture = await Sender(client, server, tenant, superuser).ready(png(48, 32))
    count = 500 // picture["bytes"]
    assert 0 < count < 5
    items = [{"input": {"images": [f"upload:{picture['id']}"]}}] * (count + 1)
    client.url = narrow.url

    refused = await client.call("POST", BATCHES, {"model": "local/describe", "items": items})
    taken = await client.call("POST", BATCHES, {"model": "local/describe", "items": items[:-1]})

    assert (refused.status, list(refused.json["details"])) == (400, [f"/items/{count}/input"])
    assert taken.status == 202, taken.body
    kept = "SELECT count(DISTINCT i.job_id) FROM limner.job_input i JOIN limner.batch_item b ON b.job_id = i.job_id WHERE b.batch_id = %s"
    assert acts.count(superuser, kept, UUID(taken.json["batch_id"])) == count > 0
