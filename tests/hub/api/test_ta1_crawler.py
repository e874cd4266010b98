"""TA1: no operation of the API reads or changes what belongs to another organization or to another app.

The crawler is made from the API's own OpenAPI document: every operation, with each of its id parameters set to
somebody else's. What it asks of a foreign object it asks of an absent one too, and the answers must be the same.
"""

import asyncio
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest

from limner.db import wake
from limner.db.pools import Database
from limner.egress.own_keys import OwnKeys
from limner.events import deliveries, endpoints, log
from limner.hub import ai_settings, batches, catalog, provider_keys, runs
from limner.hub.ai_settings import AiSettings
from limner.hub.provider_keys import Actor
from limner.kit import crypto
from limner.kit.crypto import Sealer
from limner.media import uploads
from limner.tenancy import api_keys, end_users
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.api.test_reading import second_app
from tests.running import Answer, Api, Client
from tests.web import document, stored

ROLES = {
    "every scope": api_keys.SCOPES,
    "reads": ("jobs:read", "users:read"),
    "none": (),
}
UUIDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMES = re.compile(r'\d{4}-\d\d-\d\dT[0-9:.]+Z|(?<=created":)\d{10}|(?<=created\\":)\d{10}')
SIGNED = re.compile(r"\?e=\d+&s=[\w=-]+")
LATER = frozenset({"/api/v1/jobs/{job_id}/events", "/api/v1/events"})
"""The one stays open while the job is, the other shows what a relay has placed: tests/hub/api/test_live.py reads both."""
VARYING = frozenset({"date", "x-request-id", "content-length", "location", "x-limner-job", "x-limner-overhead-ms"})
WAITED_FOR = "/v1/images/generations"
"""Answers when its job has ended: without a worker, the caller cancels it."""


@dataclass
class Victim:
    """An app full of recognisable strings."""

    org_id: UUID
    job_id: str
    external_id: str
    key: str
    webhook_id: str
    delivery_id: str
    upload_id: str
    model: str
    provider: str
    batch_id: str
    canaries: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, str]:
        """By the name of the parameter that carries it."""
        return {
            "job_id": self.job_id,
            "external_id": self.external_id,
            "key": self.key,
            "webhook_id": self.webhook_id,
            "delivery_id": self.delivery_id,
            "upload_id": self.upload_id,
            "name": self.model,
            "provider": self.provider,
            "batch_id": self.batch_id,
        }


@dataclass(frozen=True)
class Probe:
    """One request: the operation, and which of its parameters carries the id in question."""

    method: str
    template: str
    parameter: str
    body: Any

    def request(self, values: dict[str, str]) -> tuple[str, str, dict[str, str]]:
        """Method, path and headers, with the ids filled in."""
        path = self.template
        for name in re.findall(r"\{(\w+)\}", path):
            path = path.replace(f"{{{name}}}", quote(values[name], safe=""))
        if (self.parameter == "cursor" and self.method == "GET") or (
            self.parameter == "job_id" and "{job_id}" not in self.template
        ):
            named = {"webhooks": "delivery_id", "batches": "batch_id"}.get(path.split("/")[3], "job_id")
            path += "?cursor=3" if path.endswith("/items") else f"?{self.parameter}={values[named]}"
        headers = {"X-User-ID": values["external_id"]} if self.parameter == "X-User-ID" else {}
        if self.parameter == "Idempotency-Key":
            headers = {"Idempotency-Key": values["key"], "X-User-ID": values["external_id"]}
        return self.method, path, headers

    def sent(self, values: dict[str, str]) -> Any:
        """The body; what it grants goes to the id in question, what it orders is of the model in question."""
        if self.parameter == "model":
            return {**self.body, "model": values["name"]}
        if self.parameter != "grants":
            return self.body
        return {"grants": [{**row, "external_id": values["external_id"]} for row in self.body["grants"]]}


def probes() -> list[Probe]:
    """Every operation × every parameter of it that can name an object, reads before writes."""
    found = []
    for template, operations in document.document()["paths"].items():
        for method, described in operations.items():
            body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            body = {name: value for name, value in body.items() if name != "idempotency_key"} if body else None
            names = [*(p["name"] for p in described.get("parameters", [])), *(body or {})]
            ids_of = [
                n
                for n in names
                if n
                in {
                    "job_id",
                    "external_id",
                    "X-User-ID",
                    "cursor",
                    "Idempotency-Key",
                    "grants",
                    "webhook_id",
                    "delivery_id",
                    "upload_id",
                    "batch_id",
                    "name",
                    "provider",
                    "model",
                }
            ]
            found += [Probe(method.upper(), template, name, body) for name in ids_of or [""]]
    # reads first: a grant makes a namesake of the foreign user, which would hide the foreign one
    return sorted(found, key=lambda probe: probe.method != "GET")


async def planted(
    db: Database, server: Server, tenant: Tenant, name: str, key: str | None = None, app_id: UUID | None = None
) -> Victim:
    """Fill an app: a job with prompt, output, progress of its own, a user with metadata, a grant with a reason."""
    app_id = app_id or tenant.app.id
    canary = f"canary-{name}-{uuid4().hex}"
    external_id = f"user-{canary}"
    await acts.grant(db, tenant, 7_654_321_000, user=external_id, app_id=app_id)
    submitted = await acts.submit(db, tenant, user=external_id, body=f"prompt-{canary}", app_id=app_id, key=f"key-{canary}",
                                  priority=1)  # fmt: skip
    held = await acts.lease(db, submitted.job_id, lease_s=30)
    await acts.start(db, held)
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        await runs.finish(tx, held, runs.Closing(
            "succeeded", charge_mc=1000, provider="local",
            outputs=[{"index": 0, "type": "text", "text": f"text-{canary}"},
                     {"index": 1, "type": "image", "key": f"outputs/{canary}/0.png", "media_type": "image/png"}],
            usage=[{"kind": "image", "quantity": 1, "unit": "image"}],
        ))  # fmt: skip
    queued = await acts.submit(db, tenant, user=external_id, body=f"open-{canary}", app_id=app_id)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        user = await end_users.get(tx, app_id, external_id)
        await end_users.change(tx, user, actor="test", metadata={"note": f"metadata-{canary}"})
        if key is None:
            await catalog.put_model(tx, {
                "name": f"own/{canary}", "display_name": canary, "kind": "image.generate", "price_mc": 1000,
                "input_schema": {"type": "object", "additionalProperties": False},
            })  # fmt: skip
            facts = {
                "name": canary,
                "display_name": canary,
                "adapter": "openai",
                "base_url": f"https://{canary}.example.com/",
            }
            await catalog.put_provider(tx, facts)
            actor = Actor("operator", canary)
            await provider_keys.put(tx, OwnKeys(server.root), canary, f"sk-{canary}", actor)
            await ai_settings.put(tx, AiSettings({"image.generate": f"own/{canary}"}, canary), actor)
    webhook_id, delivery_id = await hooked(db, server, tenant, app_id, submitted.job_id, canary)
    upload_id = str(await planted_upload(db, tenant, app_id, external_id, canary))
    batch_id = str(await planted_batch(db, tenant, app_id, external_id, canary))
    known = [canary, str(submitted.job_id), str(queued.job_id), str(user.id), str(app_id), "7654320", "7654319"]
    known += [webhook_id, delivery_id, upload_id, batch_id]
    if key is None:
        known.append(str(tenant.org_id))
    return Victim(
        tenant.org_id, str(queued.job_id), external_id, f"key-{canary}", webhook_id, delivery_id, upload_id,
        f"own/{canary}", canary, batch_id, known,
    )  # fmt: skip


async def hooked(
    db: Database, server: Server, tenant: Tenant, app_id: UUID, job_id: UUID, canary: str
) -> tuple[str, str]:
    """A webhook of the app, to which the job's end is owed: its id and the delivery's."""
    async with db.tenant_tx(tenant.org_id) as tx:
        made = await endpoints.create(
            tx,
            Sealer(server.root, endpoints.PURPOSE),
            app_id,
            f"https://hooks.example.com/{canary}",
            most=20,
            description=canary,
        )
        events = await log.list_of_subject(tx, job_id)
    async with db.system_tx("limner_dispatch", "a test places events") as tx:
        await tx.all(
            "SELECT limner.queue_deliveries(%s::uuid[], %s::uuid[])",
            [[tenant.org_id] * len(events), [event.id for event in events]],
        )
    async with db.tenant_tx(tenant.org_id) as tx:
        [delivery] = await deliveries.list_of_endpoint(tx, made.id)
    return str(made.id), str(delivery.id)


async def planted_upload(db: Database, tenant: Tenant, app_id: UUID, external_id: str, canary: str) -> UUID:
    """A ready one, of the user's."""
    digest = crypto.sha256(canary.encode())
    wanted = uploads.Wanted(app_id, external_id, "image", f"name-{canary}", 5, digest, f"key-{canary}", digest)
    quota = uploads.Quota(10**9, 10**6)
    async with db.tenant_tx(tenant.org_id) as tx:
        upload, _ = await uploads.reserve(tx, wanted, quota)
        number = await uploads.claim(tx, upload.id)
        assert number is not None
        key = f"{uploads.picture_prefix(tenant.org_id, upload.id)}{canary}.png"
        stored = uploads.Stored(key, "image/png", 1, 1, 5, False, b"\0" * 5, "#000000")
        assert await uploads.settle(tx, upload.id, number, stored, quota) == "ready"
    return upload.id


async def planted_batch(db: Database, tenant: Tenant, app_id: UUID, external_id: str, canary: str) -> UUID:
    """One of two open jobs, of the user's."""
    items = [acts.request(tenant, user=external_id, body=f"item-{canary}", app_id=app_id) for _ in range(2)]
    wanted = batches.Wanted(items, f"key-{canary}", crypto.sha256(canary.encode()), None)
    return (await batches.submit(db, tenant.org_id, wanted)).batch_id


def shown(answer: Answer, sent: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """What a caller can tell an answer by: status, body and headers, with the caller's own words taken out."""
    text = answer.body.decode()
    for value in sent.values():
        text = text.replace(value, "<sent>").replace(quote(value, safe=""), "<sent>")
    headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in VARYING}
    return answer.status, SIGNED.sub("<signed>", TIMES.sub("<time>", UUIDS.sub("<id>", text))), headers


def absent_like(victim: Victim) -> dict[str, str]:
    """Ids of nothing, next to the victim's in time and length, so that nothing but existence differs."""
    long = f"u{uuid4().hex * 3}"
    external_id = long[: len(victim.external_id)]
    return {
        "job_id": str(UUID(int=UUID(victim.job_id).int + 1)),
        "external_id": external_id,
        "key": long[: len(victim.key)],
        "webhook_id": str(UUID(int=UUID(victim.webhook_id).int + 1)),
        "delivery_id": str(UUID(int=UUID(victim.delivery_id).int + 1)),
        "upload_id": str(UUID(int=UUID(victim.upload_id).int + 1)),
        "batch_id": str(UUID(int=UUID(victim.batch_id).int + 1)),
        "name": long[: len(victim.model)],
        "provider": long[: len(victim.provider)],
    }


async def ended(client: Client, db: Database, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
    """A call's answer, and its books closed. The job that it waits for, if any, is cancelled by its app as soon as it is there."""
    app = Client(client.http, client.url, client.api_key, user=None)
    if path == WAITED_FOR:
        known = await jobs_of(app, "queued")
        call = asyncio.create_task(client.call(method, path, body, headers=headers))
        while not call.done():
            for job_id in await jobs_of(app, "queued") - known:
                await app.call("POST", f"/api/v1/jobs/{job_id}/cancel")
                await relay(db)
            await asyncio.wait([call], timeout=0.05)
        return call.result()
    answer = await client.call(method, path, body, headers=headers)
    while path.startswith("/v1/") and method == "POST" and await jobs_of(app, "running"):
        await asyncio.sleep(0.01)  # settled while its answer was sent
    return answer


async def jobs_of(app: Client, state: str) -> set[str]:
    """The newest of the app's jobs in this state."""
    answer = await app.call("GET", f"/api/v1/jobs?status={state}&limit=5")
    return {row["job_id"] for row in answer.json["jobs"]} if answer.status == 200 else set()


async def relay(db: Database) -> None:
    """Events take their places, and everybody who waits for some hears of it."""
    await acts.relay(db)
    async with db.system_tx("limner_dispatch", "a test relays") as tx:
        await tx.get("SELECT pg_notify(%s, %s)", [wake.NEWS, wake.EVERYBODY])


async def crawl(client: Client, db: Database, victim: Victim, absent: dict[str, str]) -> set[tuple[str, str]]:
    """Every probe against one victim; the operations that were called."""
    called = set()
    foreign = victim.values
    for probe in probes():
        answers = []
        for values in (foreign, absent):
            method, path, headers = probe.request(values)
            answers.append(await ended(client, db, method, path, probe.sent(values), headers))
            raw = answers[-1].body.decode() + str(dict(answers[-1].headers))
            for value in values.values():
                raw = raw.replace(value, "")
            leaked = [canary for canary in victim.canaries if canary in raw]
            assert not leaked, (probe, leaked, raw)
            assert answers[-1].status < 500, (probe, raw)
        # a grant to either id makes a user of the caller's own: both live the same life from then on
        if probe.parameter:
            assert shown(answers[0], foreign) == shown(answers[1], absent), probe
        called.add((probe.method, probe.template))
    return called


@pytest.mark.parametrize(
    "roles", [("every scope",), pytest.param(("every scope", "reads", "none"), marks=pytest.mark.long)]
)
async def test_ta1_no_operation_shows_or_touches_what_is_somebody_elses(
    client: Client,
    db: Database,
    server: Server,
    make_tenant: MakeTenant,
    superuser: psycopg.Connection,
    roles: tuple[str, ...],
) -> None:
    acts.empty_queue(superuser)
    caller, other = await make_tenant(credits=5000, wallet_credits=500), await make_tenant(wallet_credits=500)
    sibling, _ = await second_app(db, caller)
    victims = [
        await planted(db, server, other, "org"),
        await planted(db, server, caller, "app", key="sibling", app_id=sibling.id),
    ]
    operations = {
        (method.upper(), template) for template, found in document.document()["paths"].items() for method in found
    }

    await relay(db)
    for victim in victims:
        before, absent = rows_of_victim(superuser, victim), absent_like(victim)
        for role in roles:
            async with db.tenant_tx(caller.org_id, "limner_operator") as tx:
                _, client.api_key = await api_keys.create(tx, caller.app, actor="test", scopes=ROLES[role])
            for client.user in (None, "ann"):
                assert await crawl(client, db, victim, absent) == operations
        assert rows_of_victim(superuser, victim) == before


def rows_of_victim(superuser: psycopg.Connection, victim: Victim) -> Any:
    """What must be untouched: everything of a foreign organization; jobs, user and wallet of a foreign app."""
    facts = "SELECT j.state, j.price_final_mc, w.available_mc, w.held_mc, w.version, q.cancel_requested_at"
    source = (
        " FROM limner.end_user u JOIN limner.wallet w ON w.id = u.id JOIN limner.job j ON j.end_user_id = u.id"
        " LEFT JOIN limner.job_queue q ON q.job_id = j.id WHERE u.external_id = %s AND u.id::text = %s ORDER BY j.id"
    )
    own = superuser.execute(facts + source, [victim.external_id, victim.canaries[3]]).fetchall()
    whole = stored.rows(superuser, victim.org_id) if str(victim.org_id) in victim.canaries else None
    return own, whole


async def test_ta1_the_crawler_would_notice(
    client: Client, db: Database, server: Server, make_tenant: MakeTenant
) -> None:
    """The control: with the victim's own key the canaries do appear, in every operation that shows objects."""
    tenant = await make_tenant()
    victim = await planted(db, server, tenant, "self")
    client.api_key = tenant.api_key
    values = victim.values

    showing = set()
    for probe in probes():
        if probe.method == "GET" and probe.template not in LATER:
            method, path, headers = probe.request(values)
            client.user = None
            answer = await client.call(method, path, probe.body, headers=headers)
            if answer.status == 200 and any(canary in answer.body.decode() for canary in victim.canaries):
                showing.add(probe.template)

    assert showing == {
        "/api/v1/batches", "/api/v1/batches/{batch_id}", "/api/v1/batches/{batch_id}/items", "/api/v1/batches/{batch_id}/receipt",
        "/api/v1/jobs", "/api/v1/jobs/{job_id}", "/api/v1/jobs/{job_id}/receipt", "/api/v1/models",
        "/api/v1/users/{external_id}", "/api/v1/users/{external_id}/transactions", "/api/v1/webhooks",
        "/api/v1/webhooks/{webhook_id}", "/api/v1/webhooks/{webhook_id}/deliveries",
        "/api/v1/uploads", "/api/v1/uploads/{upload_id}", "/v1/models", "/v1/models/{name}",
        "/api/v1/provider-keys", "/api/v1/provider-keys/{provider}", "/api/v1/settings/ai",
    }  # fmt: skip


@pytest.mark.long
async def test_ta1_foreign_and_absent_take_the_same_time(
    client: Client, db: Database, make_tenant: MakeTenant, http: aiohttp.ClientSession, api: Api,
    record_property: Any, server: Server,
) -> None:  # fmt: skip
    """Medians of 200 interleaved pairs. A real difference shows in every round, noise does not: the best of three."""
    caller, other = await make_tenant(), await make_tenant()
    sibling, _ = await second_app(db, caller)
    victims = {
        "org": await planted(db, server, other, "org"),
        "app": await planted(db, server, caller, "app", key="s", app_id=sibling.id),
    }
    plain = Client(http, api.url, caller.api_key, user=None)

    async def timed(path: str) -> float:
        began = time.perf_counter()
        answer = await plain.call("GET", path)
        took = time.perf_counter() - began
        assert answer.status == 404
        return took

    for kind, victim in victims.items():
        nobody = absent_like(victim)
        for name, path in (("job", "/api/v1/jobs/{job_id}"), ("receipt", "/api/v1/jobs/{job_id}/receipt"),
                           ("user", "/api/v1/users/{external_id}"), ("webhook", "/api/v1/webhooks/{webhook_id}")):  # fmt: skip
            foreign = path.format(**victim.values)
            absent = path.format(**nobody)
            ratios = []
            for _ in range(3):
                pairs = [(await timed(foreign), await timed(absent)) for _ in range(220)][20:]
                medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
                ratios.append(max(medians) / min(medians))
            record_property(f"ta1_timing_{kind}_{name}", round(min(ratios), 3))
            print(f"TA1 timing {kind} {name}: {min(ratios):.3f} of {[round(r, 3) for r in ratios]}")
            assert min(ratios) <= 1.2, (kind, name, ratios)
