"""Grants over HTTP: many at once, all or none; kinds and ends; what a user's wallet shows of them.

Every answer here is also held against the OpenAPI document (CheckedClient).
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from limner.tenancy import end_users
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.running import Client

BATCH = "/api/v1/users/tokens/batch"
TRANSFERS = "SELECT count(*) FROM limner.transfer WHERE org_id = %s"


@pytest.fixture
def client(client: Client) -> Client:
    client.user = None
    return client


def at(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


def rows(*given: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"external_id": user, "amount": amount} for user, amount in given]


async def test_a_batch_grants_in_order_and_makes_users_that_are_new(
    client: Client, db: Database, tenant: Tenant
) -> None:
    answer = await client.call("POST", BATCH, {"grants": rows(("bob", 5), ("ann", 1), ("bob", 2))})

    assert answer.status == 200
    assert answer.json["granted"] == 3
    assert [(r["index"], r["external_id"], r["amount_added"], r["new_balance"]) for r in answer.json["results"]] == [
        (0, "bob", 5, 5), (1, "ann", 1, 1001), (2, "bob", 2, 7),
    ]  # fmt: skip
    assert len({r["transaction_id"] for r in answer.json["results"]}) == 3
    assert "idempotent-replayed" not in answer.headers
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.parametrize("where", ["header", "body"])
async def test_a_batch_sent_again_is_answered_as_it_was(client: Client, where: str) -> None:
    body: dict[str, Any] = {"grants": rows(("bob", 5), ("ann", 1))}
    headers = {"Idempotency-Key": "k1"} if where == "header" else {}
    sent = body | ({"idempotency_key": "k1"} if where == "body" else {})

    first = await client.call("POST", BATCH, sent, headers=headers)
    await client.call("POST", "/api/v1/users/bob/tokens", {"amount": 3, "idempotency_key": "k1"})
    again = await client.call("POST", BATCH, sent, headers=headers)
    other = await client.call("POST", BATCH, {**sent, "grants": rows(("bob", 5), ("ann", 2))}, headers=headers)

    assert (again.status, again.json) == (200, first.json)
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")


async def test_a_thousand_rows_pass_and_one_more_does_not(client: Client) -> None:
    batch = rows(*((f"u{n}", 1) for n in range(1000)))

    assert (await client.call("POST", BATCH, {"grants": batch})).json["granted"] == 1000
    too_many = await client.call("POST", BATCH, {"grants": [*batch, *rows(("u", 1))]})

    assert (too_many.status, list(too_many.json["details"])) == (400, ["/grants"])


async def test_a_thousand_rows_of_every_field_are_within_what_a_long_body_may_hold(client: Client) -> None:
    every = {"amount": 1, "reason": '[{,"' * 100, "kind": "bonus", "expires_at": at(30)}

    answer = await client.call("POST", BATCH, {"grants": [{"external_id": f"u{n}", **every} for n in range(1000)]})

    assert (answer.status, answer.json["granted"]) == (200, 1000)


async def test_every_bad_row_is_named_and_nothing_is_granted(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    bad: list[Any] = [
        {"external_id": "fine", "amount": 1},
        {"external_id": "bob", "amount": 0},
        {"external_id": " bob", "amount": 1, "expires_at": "2030-12-31 23:59:59Z"},
        {"amount": 1, "kind": "gift"},
        "bob",
        {"external_id": "bob", "amount": 1, "colour": "red"},
        {"external_id": "bob", "amount": 1, "expires_at": "2030-12-31T23:59:59"},
    ]

    answer = await client.call("POST", BATCH, {"grants": bad, "idempotency_key": "k"})

    assert (answer.status, answer.json["code"]) == (422, "invalid_rows")
    assert set(answer.json["details"]) == {
        "/grants/1/amount", "/grants/2/external_id", "/grants/2/expires_at", "/grants/3/external_id", "/grants/3/kind",
        "/grants/4", "/grants/5/colour", "/grants/6/expires_at",
    }  # fmt: skip
    assert acts.count(superuser, TRANSFERS, tenant.org_id) == 1
    fixed = await client.call("POST", BATCH, {"grants": bad[:1], "idempotency_key": "k"})
    assert fixed.status == 200


async def test_rows_the_ledger_refuses_are_named_too(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await end_users.change(tx, await end_users.get(tx, tenant.app.id, "ann"), actor="test", is_active=False)
    late = {"external_id": "bob", "amount": 1, "expires_at": at(-1)}

    answer = await client.call("POST", BATCH, {"grants": [late, *rows(("ann", 1), ("cyd", 1))]})

    assert (answer.status, answer.json["code"]) == (422, "invalid_rows")
    assert answer.json["details"] == {
        "/grants/0/expires_at": ["credits cannot end in the past"], "/grants/1/external_id": ["this end user is deactivated"],
    }  # fmt: skip
    assert acts.count(superuser, TRANSFERS, tenant.org_id) == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({}, "/grants"), ({"grants": []}, "/grants"), ({"grants": {}}, "/grants"), ({"grants": rows(("a", 1)), "x": 1}, "/x"),
     ({"grants": rows(("a", 1)), "idempotency_key": "a b"}, "/idempotency_key")],
)  # fmt: skip
async def test_a_wrong_envelope_is_an_invalid_request(client: Client, body: Any, pointer: str) -> None:
    answer = await client.call("POST", BATCH, body)

    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert list(answer.json["details"]) == [pointer]


async def test_a_batch_that_cannot_be_paid_for_is_refused_whole(
    client: Client, db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0, wallet_credits=10, grants="from_wallet")
    client.api_key = tenant.api_key

    answer = await client.call("POST", BATCH, {"grants": rows(("ann", 6), ("bob", 5))})

    assert (answer.status, answer.json["code"]) == (402, "insufficient_organization_tokens")
    assert (answer.json["balance"], answer.json["required"]) == (10, 11)
    assert (await acts.wallet(db, tenant, None)).available_mc == 10 * MC


async def test_a_batch_needs_the_scope_and_with_a_user_it_is_that_users(
    client: Client, make_tenant: MakeTenant
) -> None:
    client.user = "ann"
    own = await client.call("POST", BATCH, {"grants": rows(("ann", 1))})
    others = await client.call("POST", BATCH, {"grants": rows(("ann", 1), ("bob", 1))})
    client.api_key = (await make_tenant(scopes=("users:read",))).api_key
    unscoped = await client.call("POST", BATCH, {"grants": rows(("ann", 1))})

    assert (own.status, others.status, others.json["code"]) == (200, 404, "user_not_found")
    assert (unscoped.status, unscoped.json["code"]) == (403, "missing_scope")


async def test_a_grant_may_be_a_bonus_and_may_end(client: Client) -> None:
    soon, late = at(3), at(30)
    await client.call("POST", "/api/v1/users/bob/tokens", {"amount": 7})
    await client.call("POST", "/api/v1/users/bob/tokens", {"amount": 5, "kind": "bonus", "expires_at": late})
    answer = await client.call("POST", "/api/v1/users/bob/tokens", {"amount": 2, "expires_at": soon})

    user = await client.call("GET", "/api/v1/users/bob")

    assert (answer.status, answer.json["new_balance"], answer.json["previous_balance"]) == (200, 14, 12)
    assert (user.json["token_balance"], user.json["tokens_owed"]) == (14, 0)
    assert [(e["amount"], datetime.fromisoformat(e["expires_at"])) for e in user.json["expiring"]] == [
        (2, datetime.fromisoformat(soon)), (5, datetime.fromisoformat(late)),
    ]  # fmt: skip


async def test_at_most_twenty_ends_are_shown_soonest_first(client: Client) -> None:
    grants = [{"external_id": "bob", "amount": n, "expires_at": at(n)} for n in range(30, 0, -1)]
    await client.call("POST", BATCH, {"grants": grants})

    user = (await client.call("GET", "/api/v1/users/bob")).json

    assert [end["amount"] for end in user["expiring"]] == list(range(1, 21))


@pytest.mark.parametrize(
    ("value", "status"),
    [("2020-01-01T00:00:00Z", 422), ("9999-12-31T23:59:59Z", 422), ("2030-01-01", 400), ("2030-01-01T00:00:00", 400),
     ("2030-02-30T00:00:00Z", 400), ("0001-01-01T00:00:00+23:59", 400), (5, 400), (None, 400), ("next year, perhaps", 400)],
)  # fmt: skip
async def test_an_end_is_a_moment_to_come(client: Client, value: Any, status: int) -> None:
    answer = await client.call("POST", "/api/v1/users/bob/tokens", {"amount": 1, "expires_at": value})

    assert answer.status == status
    assert list(answer.json["details"]) == ["/expires_at"]
    assert answer.json["code"] == ("invalid_expiry" if status == 422 else "invalid_request")


async def test_the_same_moment_in_another_offset_is_the_same_request(client: Client) -> None:
    body = {"amount": 1, "idempotency_key": "k"}
    path = "/api/v1/users/bob/tokens"

    first = await client.call("POST", path, {**body, "expires_at": "2035-01-01T00:00:00Z"})
    again = await client.call("POST", path, {**body, "expires_at": "2035-01-01T02:00:00+02:00"})
    other = await client.call("POST", path, {**body, "expires_at": "2035-01-01T02:00:01+02:00"})
    bonus = await client.call("POST", path, {**body, "expires_at": "2035-01-01T00:00:00Z", "kind": "bonus"})

    assert (again.json, again.headers["idempotent-replayed"]) == (first.json, "true")
    assert {(a.status, a.json["code"]) for a in (other, bonus)} == {(422, "idempotency_key_reused")}


async def test_a_debt_is_shown_refuses_jobs_and_is_paid_by_a_grant(
    client: Client, db: Database, tenant: Tenant
) -> None:
    await acts.claw_back(db, tenant, 1_001_500, "c")
    client.user = "ann"
    owing = (await client.call("GET", "/api/v1/users/ann")).json
    refused = await client.generate("local/canvas", input={"prompt": "x"})
    paid = await client.call("POST", "/api/v1/users/ann/tokens", {"amount": 5})
    after = (await client.call("GET", "/api/v1/users/ann")).json

    assert (owing["token_balance"], owing["tokens_owed"]) == (0, 2)
    assert (refused.status, refused.json["code"]) == (402, "insufficient_tokens")
    assert (paid.json["previous_balance"], paid.json["amount_added"], paid.json["new_balance"]) == (0, 5, 3)
    assert (after["token_balance"], after["tokens_owed"]) == (3, 0)


async def test_a_user_may_be_called_as_the_paths_are(client: Client) -> None:
    made = await client.call("POST", "/api/v1/users/tokens%2Fbatch/tokens", {"amount": 4})
    shown = await client.call("GET", "/api/v1/users/tokens%2Fbatch")

    assert (made.status, shown.status, shown.json["external_id"]) == (200, 200, "tokens/batch")
