"""`Prefer: wait=n` answers with the finished job; `Cancel-After` ends one that takes too long. Through the front door."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators.openai_server import OpenAIServer
from tests.faults.cluster import eventually
from tests.hub.api.conftest import CheckedClient
from tests.hub.api.distant import OWN, far_server, far_shop, far_worker
from tests.hub.api.refusing import Refusing
from tests.running import Answer, Api, Client

__all__ = ["far_server", "far_shop", "far_worker"]

GENERATE = "/api/v1/generate"
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()
ASKED: dict[str, Any] = {"model": OWN, "input": {"prompt": "a hare"}}


async def ask(client: Client, prefer: str | None = None, **headers: str) -> Answer:
    sent = headers | ({} if prefer is None else {"Prefer": prefer})
    return await client.call("POST", GENERATE, ASKED, headers=sent)


async def test_who_waits_gets_the_finished_job_as_get_shows_it(shop: Client, db: Database, tenant: Tenant) -> None:
    answer = await ask(shop, "respond-async, WAIT=20; foo=bar")
    shown = await shop.call("GET", f"/api/v1/jobs/{answer.json['job_id']}")

    assert (answer.status, answer.headers["preference-applied"]) == (200, "wait=20")
    assert (answer.json["status"], answer.json["tokens_charged"]) == ("succeeded", 1)
    assert answer.json == shown.json
    assert answer.headers["location"].endswith(answer.json["job_id"])
    assert await acts.books(db, tenant.org_id) == {}


async def test_a_replay_waits_for_the_same_job(shop: Client, far: OpenAIServer) -> None:
    far.then("is slow")
    key = {"Idempotency-Key": "once"}

    first, second = await asyncio.gather(ask(shop, "wait=20", **key), ask(shop, "wait=20", **key))
    third = await ask(shop, "wait", **key)

    assert {first.status, second.status, third.status} == {200}
    assert first.json == second.json == third.json
    assert sorted(a.headers.get("idempotent-replayed", "") for a in (first, second, third)) == ["", "true", "true"]
    assert third.headers["preference-applied"] == "wait=60"


async def test_who_waited_in_vain_gets_the_usual_answer(shop: Client, far: OpenAIServer) -> None:
    far.then("stalls")

    answer = await ask(shop, "wait=1")
    without = [await ask(shop, prefer) for prefer in (None, "wait=0", "wait=soon", "handling=lenient")]

    assert (answer.status, answer.json["status"], answer.headers["preference-applied"]) == (202, "queued", "wait=1")
    assert [(a.status, a.headers.get("preference-applied")) for a in without] == [(202, None)] * 4
    await shop.call("POST", f"/api/v1/jobs/{answer.json['job_id']}/cancel")


async def test_places_are_bounded_and_free_again_when_a_client_hangs_up(
    server: Server, db: Database, tenant: Tenant, http: aiohttp.ClientSession, shop: Client, far: OpenAIServer
) -> None:
    api = Api(server.home, LIMNER_DATABASE_URL=server.url, LIMNER_MAX_WAITING="1")
    client = CheckedClient(http, api.url, tenant.api_key)
    later = {**ASKED, "run_at": TOMORROW}
    try:

        def wait() -> "asyncio.Task[Any]":
            return asyncio.create_task(client.call("POST", GENERATE, later, headers={"Prefer": "wait=60"}))

        patient = wait()

        async def full() -> bool:
            nonlocal patient
            patient = wait() if patient.done() else patient  # who asks here may have been at the place first
            answer = await client.call("POST", GENERATE, later, headers={"Prefer": "wait=1"})
            return answer.status == 202 and "preference-applied" not in answer.headers and not patient.done()

        await eventually(full)
        patient.cancel()

        async def free() -> bool:
            answer = await client.call("POST", GENERATE, ASKED, headers={"Prefer": "wait=20"})
            return answer.status == 200

        await eventually(free)
    finally:
        api.stop()


async def test_a_deadline_ends_what_waits_and_what_runs_and_gives_the_hold_back(
    shop: Client, far: OpenAIServer, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    far.then("stalls")
    running = (await ask(shop, **{"Cancel-After": "7"})).json["job_id"]
    superuser.execute(
        "INSERT INTO limner.queue_policy (org_id, app_id) VALUES (%s, %s)", [tenant.org_id, tenant.app.id]
    )
    await eventually(lambda: far.asked and far.asked[-1].headers.get("X-Client-Request-Id") == running)
    superuser.execute("UPDATE limner.queue_policy SET paused_at = now() WHERE org_id = %s", [tenant.org_id])
    waiting = (await ask(shop, **{"Cancel-After": "5s"})).json["job_id"]
    bodies = [await shop.finished(job_id) for job_id in (running, waiting)]
    receipt = (await shop.call("GET", f"/api/v1/jobs/{waiting}/receipt")).json

    for body in bodies:
        assert (body["status"], body["error"]["code"], body["tokens_charged"]) == ("failed", "deadline_exceeded", 0)
        assert body["deadline"] > body["created_at"]
    assert (bodies[0]["started_at"] is None, bodies[1]["started_at"] is None) == (False, True)
    assert receipt["deadline"] == bodies[1]["deadline"]
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == (1000 * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("90s", 90), ("5m", 300), ("1h", 3600), ("1h30m45s", 5445), ("900h", 86_400)]
)
async def test_a_deadline_is_the_earlier_of_the_requests_and_the_models(
    client: Client, text: str, seconds: int
) -> None:
    asked = {"model": "local/canvas", "input": {"prompt": "a hare"}}

    dry = await client.call("POST", f"{GENERATE}?dry_run=1", asked, headers={"Cancel-After": text})

    assert (dry.status, dry.json["deadline_seconds"]) == (200, seconds)


@pytest.mark.parametrize(
    "text", ["", "4", "4s", "0m", "soon", "-5", "1.5m", "5 s", "30s1m", "1h30", "5d", "9" * 10, "５"]
)
async def test_a_deadline_that_is_none_is_refused(refusing: Refusing, text: str) -> None:
    answer = await refusing.post({"model": "local/canvas", "input": {"prompt": "x"}}, headers={"Cancel-After": text})

    assert (answer.status, list(answer.json["details"])) == (400, ["/Cancel-After"])


async def test_a_deadline_is_part_of_what_was_asked(client: Client) -> None:
    key = {"Idempotency-Key": "once"}
    asked = {"model": "local/canvas", "input": {"prompt": "a hare"}, "run_at": TOMORROW}

    answers = [
        await client.call("POST", GENERATE, asked, headers=key | {"Cancel-After": text}) for text in ("5m", "300", "6m")
    ]

    assert [answer.status for answer in answers] == [202, 202, 422]
