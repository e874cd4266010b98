"""A user's transactions over HTTP: each with its reason, adding up, in pages, filtered; nobody else's."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.hub.api.test_reading import second_app
from tests.running import Client

PATH = "/api/v1/users/ann/transactions"


async def listed(client: Client, **query: Any) -> list[dict[str, Any]]:
    sent = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
    answer = await client.call("GET", f"{PATH}?{sent}")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["transactions"]
    return found


async def lived(db: Database, tenant: Tenant, superuser: psycopg.Connection) -> str:
    """A wallet in which everything happened once; the id of the job that was delivered."""
    acts.empty_queue(superuser)
    await acts.grant(db, tenant, 5 * MC, kind="bonus", expires_at=datetime.now(UTC) + timedelta(days=2))
    job_id = (await acts.submit(db, tenant, price=4)).job_id
    await acts.work(db, job_id, charge_mc=1_500)
    await acts.refund(db, tenant, job_id, 250, "r")
    await acts.cancel(db, tenant, (await acts.submit(db, tenant, price=3)).job_id)
    acts.pass_time(superuser, tenant.org_id, timedelta(days=3))
    await acts.expire(db, tenant)
    await acts.adjust(db, tenant, 1_000, "a")
    await acts.claw_back(db, tenant, 2_000, "c")
    return str(job_id)


async def test_every_movement_is_there_with_its_reason_and_they_add_up(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    job_id = await lived(db, tenant, superuser)

    found = await listed(client, limit=100)

    assert [line["type"] for line in found] == [
        "clawback", "adjustment", "expire", "void", "hold", "refund", "post", "hold", "bonus", "grant",
    ]  # fmt: skip
    balance = Decimal(0)
    for line in reversed(found):
        balance += Decimal(line["change"])
        assert Decimal(line["balance_after"]) == balance
    assert found[6]["description"] == "test/painter delivered: 1.5 charged; 2.5 that was not needed came back"
    assert [line["job_id"] for line in found[5:8]] == [job_id] * 3
    balance_now = (await client.call("GET", "/api/v1/users/ann")).json["token_balance"]
    assert balance_now == int(balance)


async def test_pages_join_without_gap_or_overlap(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    await lived(db, tenant, superuser)
    whole = await listed(client, limit=100)

    pages, cursor = [], ""
    while True:
        answer = (await client.call("GET", f"{PATH}?limit=3&cursor={cursor}")).json
        pages += answer["transactions"]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
        await acts.grant(db, tenant, MC)  # what happens meanwhile belongs on earlier pages

    assert pages == whole


async def test_filters_choose_by_type_time_and_job(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    job_id = await lived(db, tenant, superuser)
    whole = await listed(client)
    middle = whole[5]["created_at"]

    assert [line["type"] for line in await listed(client, type="hold")] == ["hold", "hold"]
    assert [line["type"] for line in await listed(client, job_id=job_id)] == ["refund", "post", "hold"]
    assert await listed(client, since=middle) == whole[:6]
    assert await listed(client, until=middle) == whole[6:]
    assert await listed(client, since=middle, type="refund", job_id=job_id) == [whole[5]]
    assert len(await listed(client, type="hold", limit=1)) == 1


@pytest.mark.parametrize(
    ("query", "pointer"),
    [("limit=0", "/limit"), ("limit=101", "/limit"), ("limit=x", "/limit"), ("cursor=-1", "/cursor"), ("cursor=a", "/cursor"),
     ("cursor=99999999999999999999", "/cursor"), ("type=gift", "/type"), ("since=yesterday", "/since"),
     ("until=2026-01-01", "/until"), ("since=2026-01-01T00:00:00", "/since"), ("job_id=7", "/job_id")],
)  # fmt: skip
async def test_what_cannot_be_right_is_refused(client: Client, query: str, pointer: str) -> None:
    answer = await client.call("GET", f"{PATH}?{query}")

    assert (answer.status, list(answer.json["details"])) == (400, [pointer])


async def test_another_users_another_apps_and_nobodys_are_absent_alike(
    client: Client, db: Database, tenant: Tenant, make_tenant: MakeTenant
) -> None:
    await acts.grant(db, tenant, MC, user="bob")
    sibling, _ = await second_app(db, tenant)
    await acts.grant(db, tenant, MC, user="only-there", app_id=sibling.id)
    await acts.grant(db, await make_tenant(), MC, user="stranger")

    answers = [await client.call("GET", "/api/v1/users/bob/transactions")]  # as ann
    client.user = None
    others = ("only-there", "stranger", "nobody", "%20")
    answers += [await client.call("GET", f"/api/v1/users/{user}/transactions") for user in others]

    assert {(a.status, a.json["code"]) for a in answers} == {(404, "user_not_found")}
    assert (await client.call("GET", "/api/v1/users/bob/transactions")).status == 200


async def test_reading_needs_the_scope(client: Client, make_tenant: MakeTenant) -> None:
    client.api_key = (await make_tenant(scopes=("jobs:read",))).api_key

    answer = await client.call("GET", PATH)

    assert (answer.status, answer.json["code"]) == (403, "missing_scope")


async def test_a_user_whose_id_holds_slashes_has_transactions_too(client: Client) -> None:
    client.user = None
    await client.call("POST", "/api/v1/users/a%2Fb/tokens", {"amount": 4})

    answer = await client.call("GET", "/api/v1/users/a%2Fb/transactions")

    assert [line["change"] for line in answer.json["transactions"]] == ["4"]
