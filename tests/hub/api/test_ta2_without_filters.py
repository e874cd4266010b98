"""TA2 over HTTP: a forgotten WHERE is not a leak.

limner's API runs in this process with every condition on `org_id` and `app_id` in its statements made always true.
What it then shows of another organization must be what it shows otherwise: nothing. The last test takes row level
security away as well and sees the leak, so that the others are known to look in the right places.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import psycopg
import pytest
import pytest_asyncio
import uvicorn

from limner import app
from limner.db.pools import Address, Database
from limner.db.tx import Params, Row, Tx
from limner.egress.own_keys import OwnKeys
from limner.events import endpoints
from limner.hub import ai_settings, catalog, provider_keys
from limner.hub.ai_settings import AiSettings
from limner.hub.provider_keys import Actor
from limner.kit.crypto import Sealer
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.running import Api, Client, free_port

CONDITION = re.compile(r"\b(?:\w+\.)?(?:org_id|app_id) (?:= %(?:\(\w+\))?s|IN \(%\(org\)s, %\(platform\)s\))")
COMPARED = (
    "job",
    "job_queue",
    "end_user",
    "wallet",
    "transfer",
    "lot",
    "event",
    "provider_call",
    "usage_record",
    "model",
    "organization",
    "webhook_endpoint",
)


@dataclass
class Rewriting:
    """How many conditions were switched off."""

    count: int = 0

    def __call__(self, query: str) -> str:
        def always_true(match: re.Match[str]) -> str:
            self.count += 1
            return f"({match[0]} OR true)"

        return CONDITION.sub(always_true, query)


@pytest.fixture
def rewriting(monkeypatch: pytest.MonkeyPatch) -> Rewriting:
    rewrite = Rewriting()
    plain = {name: getattr(Tx, name) for name in ("execute", "find", "all")}

    async def execute(self: Tx, query: str, params: Params | None = None) -> int:
        return int(await plain["execute"](self, rewrite(query), params))

    async def find(self: Tx, query: str, params: Params | None = None) -> Row | None:
        found: Row | None = await plain["find"](self, rewrite(query), params)
        return found

    async def every(self: Tx, query: str, params: Params | None = None) -> list[Row]:
        found: list[Row] = await plain["all"](self, rewrite(query), params)
        return found

    monkeypatch.setattr(Tx, "execute", execute)
    monkeypatch.setattr(Tx, "find", find)
    monkeypatch.setattr(Tx, "all", every)
    return rewrite


@pytest_asyncio.fixture
async def unfiltered(server: Server, rewriting: Rewriting) -> AsyncIterator[str]:
    """The origin of an API in this process whose statements have lost their tenant conditions."""
    port = free_port()
    settings = server.settings.model_copy(update={"port": port, "key_cache_s": 0.0, "database_pool_size": 4})
    application = app.build(settings, server.root, Address(server.url))
    running = uvicorn.Server(uvicorn.Config(application, port=port, log_config=None, lifespan="on"))
    running.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.02)
        assert not task.done()
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    await task


@dataclass(frozen=True)
class Scene:
    """Two organizations with a finished job, an open one, a user and a model each."""

    mine: Tenant
    theirs: Tenant
    my_job: UUID
    their_job: UUID
    their_open_job: UUID
    my_webhook: UUID
    their_webhook: UUID


@pytest_asyncio.fixture
async def scene(db: Database, server: Server, make_tenant: MakeTenant, superuser: psycopg.Connection) -> Scene:
    acts.empty_queue(superuser)
    mine, theirs = await make_tenant(), await make_tenant()
    await acts.grant(db, theirs, 77_000, user="only-theirs")
    made, hooks = {}, {}
    for tenant in (mine, theirs):
        done = (await acts.submit(db, tenant, body=f"prompt of {tenant.slug}")).job_id
        await acts.work(db, done)
        made[tenant.slug] = done
        async with db.tenant_tx(tenant.org_id) as tx:
            sealer = Sealer(server.root, endpoints.PURPOSE)
            url = f"https://{tenant.slug}.example.com/"
            hooks[tenant.slug] = (await endpoints.create(tx, sealer, tenant.app.id, url, most=20)).id
        async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            await catalog.put_model(tx, {
                "name": f"own/{tenant.slug}", "display_name": "Own", "kind": "image", "price_mc": 1000,
                "input_schema": {"type": "object", "additionalProperties": False},
            })  # fmt: skip
            await catalog.put_provider(tx, {
                "name": tenant.slug, "display_name": "Own", "adapter": "openai", "base_url": "https://api.openai.com/v1",
            })  # fmt: skip
            actor = Actor("operator", "test")
            await provider_keys.put(tx, OwnKeys(server.root), tenant.slug, f"sk-of-{tenant.slug}", actor)
            await ai_settings.put(tx, AiSettings(tone=tenant.slug), actor)
    opened = (await acts.submit(db, theirs, body="open")).job_id
    return Scene(mine, theirs, made[mine.slug], made[theirs.slug], opened, hooks[mine.slug], hooks[theirs.slug])


READS = (
    "/api/v1/jobs",
    "/api/v1/jobs?status=succeeded",
    "/api/v1/jobs?limit=1",
    "/api/v1/models",
    "/api/v1/webhooks",
    "/api/v1/provider-keys",
    "/api/v1/settings/ai",
)


def paths(scene: Scene) -> list[tuple[str, str]]:
    theirs = [
        f"/api/v1/jobs/{job}{rest}" for job in (scene.their_job, scene.their_open_job) for rest in ("", "/receipt")
    ]
    mine = [f"/api/v1/jobs/{scene.my_job}", f"/api/v1/jobs/{scene.my_job}/receipt"]
    users = [f"/api/v1/users/{user}{rest}" for user in ("ann", "only-theirs") for rest in ("", "/transactions")]
    hooks = [
        f"/api/v1/webhooks/{webhook}{rest}"
        for webhook in (scene.my_webhook, scene.their_webhook)
        for rest in ("", "/secret", "/deliveries")
    ]
    return [
        *(("GET", path) for path in (*READS, *theirs, *mine, *users, *hooks)),
        ("POST", f"/api/v1/jobs/{scene.their_job}/cancel"),
        ("POST", f"/api/v1/jobs/{scene.their_open_job}/cancel"),
        ("POST", f"/api/v1/webhooks/{scene.their_webhook}/rotate"),
        ("DELETE", f"/api/v1/webhooks/{scene.their_webhook}"),
    ]


async def journey(http: aiohttp.ClientSession, url: str, scene: Scene) -> dict[str, Any]:
    """Everything the first organization can ask, for a user and for the whole app."""
    seen: dict[str, Any] = {}
    for user in (None, "ann"):
        client = Client(http, url, scene.mine.api_key, user)
        for method, path in paths(scene):
            answer = await client.call(method, path)
            body = (
                {**answer.json, "request_id": None}
                if "request_id" in answer.json and answer.status >= 400
                else answer.json
            )
            seen[f"{user} {method} {path}"] = (answer.status, body)
    return seen


async def test_ta2_the_api_without_its_own_tenant_filters_shows_nothing_foreign(
    http: aiohttp.ClientSession, api: Api, unfiltered: str, rewriting: Rewriting, scene: Scene
) -> None:
    expected = await journey(http, api.url, scene)

    without = await journey(http, unfiltered, scene)

    assert rewriting.count > 60  # the conditions really were switched off
    assert without == expected
    foreign = [
        str(scene.their_job),
        str(scene.their_open_job),
        "only-theirs",
        scene.theirs.slug,
        str(scene.theirs.org_id),
        str(scene.their_webhook),
    ]
    shown = {name: str(answer) for name, answer in without.items() if answer[0] == 200}
    assert len(shown) == 28
    assert not [(name, word) for name, text in shown.items() for word in foreign if word in text]


async def test_ta2_the_api_without_its_filters_submits_and_grants_inside_its_own_organization(
    http: aiohttp.ClientSession, unfiltered: str, rewriting: Rewriting, scene: Scene, db: Database
) -> None:
    before = await acts.wallet(db, scene.theirs)
    client = Client(http, unfiltered, scene.mine.api_key, "ann")

    made = await client.generate("local/canvas", input={"prompt": "x"})
    granted = await client.call("POST", "/api/v1/users/ann/tokens", {"amount": 5})
    foreign_model = await client.generate(f"own/{scene.theirs.slug}", input={})
    own_model = await client.generate(f"own/{scene.mine.slug}", input={})

    assert rewriting.count > 0
    assert (made.status, granted.status, own_model.status) == (202, 200, 202)
    assert (foreign_model.status, foreign_model.json["code"]) == (404, "model_not_found")
    assert granted.json["new_balance"] == 1000 - 1 - 1 + 5
    assert await acts.wallet(db, scene.theirs) == before


@pytest.fixture
def without_row_security(superuser: psycopg.Connection) -> Iterator[None]:
    for table in COMPARED:
        superuser.execute(f"ALTER TABLE limner.{table} DISABLE ROW LEVEL SECURITY")
    yield
    for table in COMPARED:
        superuser.execute(f"ALTER TABLE limner.{table} ENABLE ROW LEVEL SECURITY")


async def test_ta2_without_row_security_the_same_journey_would_leak(
    http: aiohttp.ClientSession, unfiltered: str, rewriting: Rewriting, scene: Scene, without_row_security: None
) -> None:
    client = Client(http, unfiltered, scene.mine.api_key, None)

    job = await client.call("GET", f"/api/v1/jobs/{scene.their_job}")
    user = await client.call("GET", "/api/v1/users/only-theirs")
    listed = await client.call("GET", "/api/v1/jobs")
    models = await client.call("GET", "/api/v1/models")
    webhook = await client.call("GET", f"/api/v1/webhooks/{scene.their_webhook}")

    assert rewriting.count > 0
    assert webhook.status == 200
    assert (job.status, user.status, user.json["token_balance"]) == (200, 200, 77)
    assert {str(scene.their_job), str(scene.my_job)} <= {job["job_id"] for job in listed.json["jobs"]}
    assert f"own/{scene.theirs.slug}" in {model["name"] for model in models.json["models"]}
