"""Who calls, and for whom: what is missing, dead, switched off or ambiguous is refused, and nothing is stored or charged."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest

from limner.db.pools import Database
from limner.tenancy import api_keys, apps, end_users, organizations
from tests.conftest import MakeTenant, Tenant
from tests.hub.api.refusing import GENERATE, GOOD, GRANT, Refusing
from tests.running import Client
from tests.web import raw, stored


async def operate(db: Database, tenant: Tenant, verb: str, **facts: Any) -> str:
    """What an operator does to a tenant; a new key's text where one is made."""
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        if verb == "key":
            _, text = await api_keys.create(tx, tenant.app, actor="test", **facts)
            return text
        if verb == "revoke":
            [key] = await api_keys.list_of_app(tx, tenant.app)
            await api_keys.revoke(tx, key, actor="test")
        elif verb == "app":
            await apps.change(tx, tenant.app, actor="test", **facts)
        elif verb == "organization":
            await organizations.change(tx, actor="test", **facts)
        elif verb == "user":
            user = await end_users.get(tx, tenant.app.id, "ann")
            await end_users.change(tx, user, actor="test", **facts)
    return ""


# Who calls


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "missing_api_key"), ("", "missing_api_key"), ("pm_live_abc123", "invalid_api_key"), ("lmn_live_", "invalid_api_key"),
        (api_keys.generate(), "invalid_api_key"), (api_keys.generate()[:-1] + "!", "invalid_api_key"),
        ("' OR 1=1 --", "invalid_api_key"), ("k" * 5000, "invalid_api_key"), ("\u00e9" * 58, "invalid_api_key"),
    ],
    ids=range(9),
)  # fmt: skip
async def test_a_missing_or_malformed_key_answers_401(refusing: Refusing, key: str | None, code: str) -> None:
    refusing.client.api_key = None
    headers = {} if key is None else {"X-API-Key": key}

    for method, path, body in (("POST", GENERATE, GOOD), ("GET", "/api/v1/jobs", None), ("POST", GRANT, {"amount": 1})):
        answer = await refusing.call(method, path, body, headers=headers)
        assert (answer.status, answer.json["code"]) == (401, code)


async def test_a_real_key_with_one_character_changed_answers_401(refusing: Refusing, tenant: Tenant) -> None:
    for at in (9, 30, len(tenant.api_key) - 1):
        wrong = "A" if tenant.api_key[at] != "A" else "B"
        refusing.client.api_key = tenant.api_key[:at] + wrong + tenant.api_key[at + 1 :]
        assert (await refusing.post(GOOD)).status == 401


async def test_a_key_sent_twice_is_nobodys(refusing: Refusing, tenant: Tenant) -> None:
    head = f"X-API-Key: {tenant.api_key}\r\nX-API-Key: {tenant.api_key}\r\n"
    request = f"GET /api/v1/jobs HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{head}\r\n".encode()

    reply = await raw.exchange(refusing.client.url, request)

    assert (reply.status, list(reply.json["details"])) == (400, ["/X-API-Key"])


async def test_a_revoked_key_answers_401_within_the_cache_time(
    refusing: Refusing, db: Database, tenant: Tenant
) -> None:
    assert (await refusing.client.call("GET", "/api/v1/jobs")).status == 200
    await operate(db, tenant, "revoke")

    await asyncio.sleep(1.1)  # LIMNER_KEY_CACHE_S is 1 in tests

    assert (await refusing.post(GOOD)).json["code"] == "invalid_api_key"


async def test_an_expired_key_answers_401(refusing: Refusing, db: Database, tenant: Tenant) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    refusing.client.api_key = await operate(db, tenant, "key", expires_at=past, scopes=api_keys.SCOPES)

    assert (await refusing.post(GOOD)).json["code"] == "invalid_api_key"


NEEDS = [
    ("POST", GENERATE, GOOD, "jobs:create"), ("GET", "/api/v1/jobs", None, "jobs:read"),
    ("GET", f"/api/v1/jobs/{uuid4()}", None, "jobs:read"), ("GET", f"/api/v1/jobs/{uuid4()}/receipt", None, "jobs:read"),
    ("POST", f"/api/v1/jobs/{uuid4()}/cancel", None, "jobs:create"), ("GET", "/api/v1/users/ann", None, "users:read"),
    ("POST", GRANT, {"amount": 1}, "tokens:grant"), ("POST", "/api/v1/check", {"text": "a hare"}, "jobs:create"),
    ("GET", "/api/v1/webhooks", None, "webhooks:manage"),
    ("POST", "/api/v1/webhooks", {"url": "https://hooks.example.com/"}, "webhooks:manage"),
    ("GET", f"/api/v1/webhooks/{uuid4()}", None, "webhooks:manage"),
    ("PATCH", f"/api/v1/webhooks/{uuid4()}", {"enabled": True}, "webhooks:manage"),
    ("DELETE", f"/api/v1/webhooks/{uuid4()}", None, "webhooks:manage"),
    ("POST", f"/api/v1/webhooks/{uuid4()}/rotate", None, "webhooks:manage"),
    ("GET", f"/api/v1/webhooks/{uuid4()}/secret", None, "webhooks:manage"),
    ("GET", f"/api/v1/webhooks/{uuid4()}/deliveries", None, "webhooks:manage"),
    ("POST", f"/api/v1/webhooks/{uuid4()}/redeliver", {"since": "2026-01-01T00:00:00Z"}, "webhooks:manage"),
    ("POST", f"/api/v1/webhooks/deliveries/{uuid4()}/redeliver", None, "webhooks:manage"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "scope"), NEEDS, ids=range(len(NEEDS)))
async def test_a_key_without_the_scope_answers_403_and_says_which(
    refusing: Refusing, db: Database, tenant: Tenant, method: str, path: str, body: Any, scope: str
) -> None:
    others = tuple(known for known in api_keys.SCOPES if known != scope)
    refusing.client.api_key = await operate(db, tenant, "key", scopes=others)

    answer = await refusing.call(method, path, body)

    assert (answer.status, answer.json["code"]) == (403, "missing_scope")
    assert scope in answer.json["error"]


@pytest.mark.parametrize(
    ("verb", "facts", "code"),
    [
        ("app", {"is_enabled": False}, "app_disabled"),
        ("organization", {"is_active": False}, "organization_inactive"),
        ("user", {"is_active": False}, "user_inactive"),
    ],
)
async def test_what_is_switched_off_answers_403(
    refusing: Refusing, db: Database, tenant: Tenant, verb: str, facts: dict[str, Any], code: str
) -> None:
    await operate(db, tenant, verb, **facts)

    for path, body in ((GENERATE, GOOD), (GRANT, {"amount": 5})):
        answer = await refusing.post(body, path)
        assert (answer.status, answer.json["code"]) == (403, code)
    for path in ("/api/v1/jobs", "/api/v1/users/ann", "/api/v1/jobs/01a1f85d-126f-701c-b732-d9e071145302"):
        answer = await refusing.call("GET", path)
        assert (answer.status, answer.json["code"]) == (403, code), path


# For whom


async def test_no_user_answers_400_unless_the_key_may_spend_the_organizations_credits(
    refusing: Refusing, db: Database, tenant: Tenant
) -> None:
    refusing.client.user = None
    answer = await refusing.post(GOOD)
    assert (answer.status, answer.json["code"]) == (402, "insufficient_organization_tokens")

    scopes = tuple(scope for scope in api_keys.SCOPES if scope != "org:spend")
    refusing.client.api_key = await operate(db, tenant, "key", scopes=scopes)
    answer = await refusing.post(GOOD)
    assert (answer.status, answer.json["code"]) == (400, "missing_user")
    assert list(answer.json["details"]) == ["/X-User-ID"]


async def test_an_empty_user_id_never_means_the_whole_app_or_the_organization(
    client: Client, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """A template without its variable sends an empty header: it must not spend or show what belongs to everybody."""
    rich = await make_tenant(wallet_credits=100)
    client.api_key, client.user = rich.api_key, ""
    refusing = Refusing(client, rich, superuser)

    for method, path, body in (("POST", GENERATE, GOOD), ("GET", "/api/v1/jobs", None), ("POST", GRANT, {"amount": 1})):
        answer = await refusing.call(method, path, body)
        assert (answer.status, answer.json["code"]) == (400, "missing_user")


@pytest.mark.parametrize(
    "user",
    [b"\x7f", b"a\tb", "a\u200bb".encode(), "\u202eann".encode(), "a\u00a0b".encode(), b"x" * 256, "é".encode() * 256,
     b"\xff\xfe", b"\xe9", "\ufffd".encode(), "a\u2028b".encode(), "\ue000".encode()],
)  # fmt: skip
async def test_a_user_id_that_cannot_be_read_answers_400(refusing: Refusing, tenant: Tenant, user: bytes) -> None:
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-API-Key: {tenant.api_key}\r\nX-User-ID: ".encode()
    body = orjson.dumps(GOOD)
    before = stored.rows(refusing.superuser, tenant.org_id)

    tail = f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    reply = await raw.exchange(refusing.client.url, head + user + tail + body)

    assert reply.status == 400
    if reply.json["code"] != "malformed_request":  # else the HTTP parser itself refused it
        assert list(reply.json["details"]) == ["/X-User-ID"]
    assert stored.rows(refusing.superuser, tenant.org_id) == before


async def test_two_user_ids_in_one_request_answer_400(refusing: Refusing, tenant: Tenant) -> None:
    head = f"X-API-Key: {tenant.api_key}\r\nX-User-ID: ann\r\nx-user-id: bob\r\n"

    reply = await raw.exchange(
        refusing.client.url, f"GET /api/v1/jobs HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{head}\r\n".encode()
    )

    assert (reply.status, list(reply.json["details"])) == (400, ["/X-User-ID"])


@pytest.mark.parametrize("path", ["a%00b", "%00", "%20ann", "ann%20", "%ff", "a%09b", "x" * 256, "%e2%80%8b"])
async def test_an_id_in_the_path_that_cannot_be_a_users_is_absent_and_makes_nobody(
    refusing: Refusing, tenant: Tenant, path: str
) -> None:
    refusing.client.user = None
    head = {"X-API-Key": tenant.api_key}
    before = stored.rows(refusing.superuser, tenant.org_id)

    got = await raw.exchange(refusing.client.url, raw.request("GET", f"/api/v1/users/{path}", head))
    granted = await raw.exchange(
        refusing.client.url, raw.request("POST", f"/api/v1/users/{path}/tokens", head, b'{"amount":1}')
    )

    assert (got.status, got.json["code"]) == (404, "user_not_found")
    assert (granted.status, granted.json["code"]) == (400, "invalid_user")
    assert stored.rows(refusing.superuser, tenant.org_id) == before


# Absent


@pytest.mark.parametrize(
    "job_id",
    ["1", "0", "-", "%00", "..", "undefined", "%7B" + "a" * 34 + "%7D", "0123456789abcdef" * 2 + "----",
     "0123456789abcdef" * 2, "urn:uuid:" + str(uuid4()), str(uuid4()) + "%20", str(uuid4())[:-1] + "%C3%A9", str(uuid4())],
    ids=range(13),
)  # fmt: skip
async def test_what_is_no_job_answers_404(refusing: Refusing, job_id: str) -> None:
    for method, rest in (("GET", ""), ("GET", "/receipt"), ("POST", "/cancel")):
        head = {"X-API-Key": refusing.tenant.api_key}
        reply = await raw.exchange(refusing.client.url, raw.request(method, f"/api/v1/jobs/{job_id}{rest}", head))
        assert (reply.status, reply.json["code"]) == (404, "job_not_found")
