"""A dry run says what would happen and does nothing: no job, no user, no hold, no token of a limit."""

from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.hub.api.refusing import Refusing
from tests.running import Client
from tests.web import stored

DRY = "/api/v1/generate?dry_run=1"
GOOD: dict[str, Any] = {"model": "local/canvas", "input": {"prompt": "a hare", "num_outputs": 3}}


async def test_a_dry_run_tells_price_balance_and_routes_and_does_nothing(
    client: Client, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    before = stored.rows(superuser, tenant.org_id)

    answer = await client.call("POST", DRY, GOOD)

    assert answer.status == 200, answer.body
    assert answer.json == {
        "dry_run": True, "model": "local/canvas", "tokens_charged": 3, "user_balance": 997,
        "routes": [{"provider": "local", "provider_model": answer.json["routes"][0]["provider_model"], "priority": 1,
                    "rule": "first by priority 1 of 1"}],
        "estimated_wait_seconds": answer.json["estimated_wait_seconds"],
    }  # fmt: skip
    assert stored.rows(superuser, tenant.org_id) == before
    assert (await client.call("POST", "/api/v1/generate", GOOD)).json["user_balance"] == 997


async def test_an_unknown_user_stays_unknown(refusing: Refusing) -> None:
    refusing.client.user = "stranger"

    answer = await refusing.post(GOOD, DRY)

    assert (answer.status, answer.json["code"]) == (404, "user_not_found")


async def test_too_few_credits_and_a_debt_are_the_same_402(
    refusing: Refusing, superuser: psycopg.Connection, tenant: Tenant
) -> None:
    superuser.execute(
        "UPDATE limner.wallet SET available_mc = 2500 WHERE org_id = %s AND id <> org_id", [tenant.org_id]
    )
    poor = await refusing.post(GOOD, DRY)
    really = await refusing.post(GOOD)
    superuser.execute(
        "UPDATE limner.wallet SET available_mc = 9000, owed_mc = 1 WHERE org_id = %s AND id <> org_id", [tenant.org_id]
    )
    owing = await refusing.post(GOOD, DRY)

    assert (poor.status, poor.json["code"], poor.json["balance"], poor.json["required"]) == (
        402,
        "insufficient_tokens",
        2,
        3,
    )
    assert {**really.json, "request_id": None} == {**poor.json, "request_id": None}
    assert (owing.status, owing.json["balance"], owing.json["required"], owing.json["owed"]) == (402, 9, 3, 1)
    really = await refusing.post(GOOD)
    assert {**really.json, "request_id": None} == {**owing.json, "request_id": None}


async def test_an_organization_pays_in_a_dry_run_as_it_would(client: Client, make_tenant: MakeTenant) -> None:
    client.api_key, client.user = (await make_tenant(wallet_credits=7)).api_key, None

    assert (await client.call("POST", DRY, GOOD)).json["user_balance"] == 4
    too_much = await client.call("POST", DRY, {"model": "local/canvas", "input": {"prompt": "x", "num_outputs": 4}})
    assert too_much.status == 200
    client.api_key = (await make_tenant(wallet_credits=1)).api_key
    refused = await client.call("POST", DRY, GOOD)
    assert (refused.status, refused.json["code"]) == (402, "insufficient_organization_tokens")


async def test_a_deactivated_user_is_refused(refusing: Refusing, superuser: psycopg.Connection, tenant: Tenant) -> None:
    superuser.execute("UPDATE limner.end_user SET is_active = false WHERE org_id = %s", [tenant.org_id])

    assert (await refusing.post(GOOD, DRY)).json["code"] == "user_inactive"


@pytest.mark.parametrize(
    "body",
    [{"model": "none/such", "input": {}}, {"model": "local/canvas", "input": {}}, {"model": "local/canvas"},
     {**GOOD, "priority": 0}, {**GOOD, "webhook_url": "http://example.com"}, {**GOOD, "run_at": "soon"},
     {**GOOD, "idempotency_key": "with a blank"},
     {"model": "local/describe", "input": {"images": ["data:image/png;base64,AAAA"]}}],
)  # fmt: skip
async def test_what_a_submit_would_refuse_a_dry_run_refuses_alike(refusing: Refusing, body: dict[str, Any]) -> None:
    dry, real = await refusing.post(body, DRY), await refusing.post(body)

    assert (dry.status, {**dry.json, "request_id": 0}) == (real.status, {**real.json, "request_id": 0})


async def test_a_dry_run_is_counted_by_no_limit_and_uses_up_no_key(
    client: Client, tenant: Tenant, superuser: psycopg.Connection, db: Database
) -> None:
    superuser.execute("UPDATE limner.app SET user_jobs_per_min = 1 WHERE org_id = %s", [tenant.org_id])
    key = {"Idempotency-Key": "one"}

    dry = [await client.call("POST", DRY, GOOD, headers=key) for _ in range(4)]
    first = await client.call("POST", "/api/v1/generate", GOOD, headers=key)
    after = await client.call("POST", DRY, {**GOOD, "priority": 3}, headers=key)

    assert [a.status for a in dry] == [200] * 4
    assert (first.status, first.headers.get("idempotent-replayed")) == (202, None)
    assert (after.status, after.headers.get("ratelimit")) == (200, None)
    assert (await client.call("POST", "/api/v1/generate", GOOD)).status == 429
    assert await acts.books(db, tenant.org_id) == {}


async def test_the_parameter_is_on_or_off(client: Client, refusing: Refusing) -> None:
    for value, status in {"0": 202, "false": 202, "true": 200, "1": 200}.items():
        assert (await client.call("POST", f"/api/v1/generate?dry_run={value}", GOOD)).status == status
    for value in ("maybe", ""):
        answer = await refusing.post(GOOD, f"/api/v1/generate?dry_run={value}")
        assert (answer.status, answer.json["details"]) == (400, {"/dry_run": ["must be 1 or 0"]})
