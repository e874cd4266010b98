"""MJ4 over HTTP: a retried request is the same request, whatever else happens meanwhile."""

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.hub.api.test_reading import second_app
from tests.running import Answer, Client
from tests.web import stored

GENERATE = "/api/v1/generate"
GOOD: dict[str, Any] = {"model": "local/canvas", "input": {"prompt": "a hare"}}
OWN = frozenset({"x-request-id", "idempotent-replayed", "date"})
LARGE = pytest.param(1000, 20, marks=pytest.mark.long)


async def copies(client: Client, path: str, body: Any, key: str, count: int) -> Sequence[Answer]:
    """The same request `count` times at the same moment, the key in the header or, every other time, in the body."""

    async def send(number: int) -> Answer:
        if number % 2:
            return await client.call("POST", path, {**body, "idempotency_key": key})
        return await client.call("POST", path, body, headers={"Idempotency-Key": key})

    return await asyncio.gather(*(send(number) for number in range(count)))


def assert_one_answer(answers: Sequence[Answer]) -> None:
    """Byte for byte the same, and all but one of them say that they are replays."""
    first = answers[0]
    kept = {name.lower(): value for name, value in first.headers.items() if name.lower() not in OWN}
    for answer in answers:
        assert (answer.status, answer.body) == (first.status, first.body)
        assert {n.lower(): v for n, v in answer.headers.items() if n.lower() not in OWN} == kept
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    replays = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert sorted(replays, key=str) == [None] + ["true"] * (len(answers) - 1)


@pytest.mark.parametrize(("keys", "times"), [(50, 10), LARGE])
async def test_mj4_copies_of_a_request_make_one_job_and_one_hold(
    client: Client, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, keys: int, times: int
) -> None:
    tenant = await make_tenant(credits=keys)
    client.api_key = tenant.api_key
    made = set()

    for start in range(0, keys, 10):
        batch = range(start, start + 10)
        answers = await asyncio.gather(*(copies(client, GENERATE, GOOD, f"key-{n}", times) for n in batch))
        for group in answers:
            assert group[0].status == 202, group[0].body
            assert_one_answer(group)
            made.add(group[0].json["job_id"])

    rows = stored.rows(superuser, tenant.org_id)
    assert len(made) == keys
    assert (rows["job"], rows["job_queue"], rows["transfer"]) == (keys, keys, keys + 1)
    assert (rows["available"], rows["held"]) == (0, keys * 1000)
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.parametrize(("keys", "times"), [(50, 10), LARGE])
async def test_mj4_copies_of_a_grant_grant_once(
    client: Client, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, keys: int, times: int
) -> None:
    tenant = await make_tenant(credits=0)
    client.api_key, client.user = tenant.api_key, None

    for start in range(0, keys, 10):
        batch = range(start, start + 10)
        answers = await asyncio.gather(
            *(copies(client, f"/api/v1/users/u{n % 3}/tokens", {"amount": 7}, f"key-{n}", times) for n in batch)
        )
        for group in answers:
            assert group[0].status == 200, group[0].body
            assert_one_answer(group)

    rows = stored.rows(superuser, tenant.org_id)
    assert (rows["transfer"], rows["end_user"], rows["available"]) == (keys, 3, keys * 7000)
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj4_a_replay_costs_nothing_and_never_answers_402(
    client: Client, superuser: psycopg.Connection, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=2)
    client.api_key = tenant.api_key
    first = await client.call("POST", GENERATE, GOOD, headers={"Idempotency-Key": "one"})
    await client.call("POST", GENERATE, GOOD)
    assert (await client.call("POST", GENERATE, GOOD)).status == 402
    before = stored.rows(superuser, tenant.org_id)

    again = await client.call("POST", GENERATE, GOOD, headers={"Idempotency-Key": "one"})

    assert (again.status, again.body) == (202, first.body)
    assert (again.json["tokens_charged"], again.json["user_balance"]) == (1, 1)  # as it was answered then
    assert stored.rows(superuser, tenant.org_id) == before


async def test_mj4_a_replayed_grant_answers_as_it_did_although_its_source_is_empty_now(
    client: Client, superuser: psycopg.Connection, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant(credits=0, grants="from_wallet", wallet_credits=5)
    client.api_key, client.user = tenant.api_key, None
    first = await client.call("POST", "/api/v1/users/bo/tokens", {"amount": 5}, headers={"Idempotency-Key": "jan"})
    assert (await client.call("POST", "/api/v1/users/bo/tokens", {"amount": 1})).status == 402
    client.user = "bo"
    await client.call("POST", GENERATE, GOOD)
    client.user = None
    before = stored.rows(superuser, tenant.org_id)

    again = await client.call("POST", "/api/v1/users/bo/tokens", {"amount": 5}, headers={"Idempotency-Key": "jan"})

    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (200, first.body, "true")
    assert stored.rows(superuser, tenant.org_id) == before


async def test_mj4_a_replay_after_the_job_ended_is_the_first_answer(client: Client) -> None:
    first = await client.call("POST", GENERATE, GOOD, headers={"Idempotency-Key": "one"})
    await client.call("POST", f"/api/v1/jobs/{first.json['job_id']}/cancel")

    again = await client.call("POST", GENERATE, GOOD, headers={"Idempotency-Key": "one"})

    assert (again.status, again.body) == (202, first.body)
    assert again.headers["location"] == first.headers["location"]


async def test_mj4_one_key_of_two_tenants_two_apps_and_two_users_never_interacts(
    client: Client, db: Database, make_tenant: MakeTenant
) -> None:
    one: Tenant = await make_tenant(wallet_credits=50)
    two: Tenant = await make_tenant(wallet_credits=50)
    _, sibling_key = await second_app(db, one, welcome_mc=9000)
    callers = [(key, user) for key in (one.api_key, two.api_key, sibling_key) for user in ("ann", "bob", None)]
    await acts.grant(db, one, 9000, user="bob")
    await acts.grant(db, two, 9000, user="bob")
    jobs: dict[tuple[str, str | None], str] = {}
    grants: dict[tuple[str, str | None], str] = {}

    for number, caller in enumerate(callers):
        client.api_key, client.user = caller
        body = {"model": "local/canvas", "input": {"prompt": f"the body of caller {number}"}}
        accepted = await client.call("POST", GENERATE, body, headers={"Idempotency-Key": "shared"})
        assert accepted.status == 202, accepted.body
        assert "idempotent-replayed" not in accepted.headers
        jobs[caller] = accepted.json["job_id"]
    for key in (one.api_key, two.api_key, sibling_key):
        client.api_key, client.user = key, None
        granted = await client.call(
            "POST", "/api/v1/users/ann/tokens", {"amount": 3}, headers={"Idempotency-Key": "shared"}
        )
        assert granted.status == 200, granted.body
        assert "idempotent-replayed" not in granted.headers
        grants[key, None] = granted.json["transaction_id"]

    assert len(set(jobs.values())) == len(callers)
    assert len(set(grants.values())) == 3
    for number, caller in enumerate(callers):
        client.api_key, client.user = caller
        body = {"model": "local/canvas", "input": {"prompt": f"the body of caller {number}"}}
        again = await client.call("POST", GENERATE, body, headers={"Idempotency-Key": "shared"})
        assert (again.json["job_id"], again.headers["idempotent-replayed"]) == (jobs[caller], "true")


async def test_mj4_a_refused_request_leaves_its_key_free(client: Client, make_tenant: MakeTenant) -> None:
    """Nothing is stored of a 402: the same request with the same key goes through once there are credits."""
    tenant = await make_tenant(credits=0)
    client.api_key = tenant.api_key
    key = {"Idempotency-Key": "later"}
    assert (await client.call("POST", GENERATE, GOOD, headers=key)).status == 402
    await client.call("POST", "/api/v1/users/ann/tokens", {"amount": 1})

    answer = await client.call("POST", GENERATE, GOOD, headers=key)

    assert (answer.status, answer.headers.get("idempotent-replayed")) == (202, None)
