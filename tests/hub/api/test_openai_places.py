"""Calls of `/v1` at a provider that takes only so many at once: they take places as jobs do, or are passed on, and hold nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import psycopg

from limner.db.pools import Database
from limner.hub import catalog, jobs
from limner.kit import ids
from tests import acts
from tests.conftest import MakeTenant, Tenant
from tests.emulators.openai_server import OpenAIServer, Says
from tests.faults.cluster import eventually
from tests.hub.api.test_openai_chat import BROKEN, HELLO, MODEL, ask, books, calm, far, house, sell
from tests.running import Api

__all__ = ["calm", "far", "house"]

WANTED = {"model": MODEL, "messages": HELLO}
QUEUED = "SELECT count(*) FROM limner.job_queue WHERE org_id = %s"


async def opened(db: Database, make_tenant: MakeTenant, far: OpenAIServer, /, **most: int | None) -> Tenant:
    """A tenant with the model at these providers, in this order, each with its cap or None."""
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, *((name, far.url) for name in most))
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        for name, cap in most.items():
            await catalog.limit_provider(tx, name, {"max_running": cap})
    return tenant


@asynccontextmanager
async def filling(house: Api, tenant: Tenant, far: OpenAIServer, superuser: psycopg.Connection) -> AsyncIterator[None]:
    """A stream that is under way meanwhile."""
    far.token_s = 0.1
    stream = asyncio.create_task(ask(house, tenant, WANTED | {"stream": True}))
    await eventually(lambda: any(state == "running" for state, _ in books(superuser, tenant)))
    yield
    assert not stream.done(), "it was to last"
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)


async def test_mj17_calls_never_ask_a_provider_more_often_at_once_than_it_takes(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    """Of thirty at once three are answered; the others hold nothing and hear when to come back, and then they are answered too."""
    tenant = await opened(db, make_tenant, far, far=3)
    far.always("is slow")
    before = len(far.asked)

    answers = await asyncio.gather(*(ask(house, tenant, WANTED) for _ in range(30)))

    assert sorted(status for status, _, _ in answers) == [200] * 3 + [503] * 27
    refused = [(body["error"]["code"], headers["retry-after"]) for status, body, headers in answers if status == 503]
    assert refused == [("provider_unavailable", "1")] * 27
    assert len(far.asked) - before == 3
    await eventually(lambda: [state for state, _ in books(superuser, tenant)] == ["succeeded"] * 3)
    far.calm_down()
    again = await asyncio.gather(*(ask(house, tenant, WANTED | {"stream": True}) for _ in range(3)))
    assert [status for status, _, _ in again] == [200] * 3


async def test_a_place_is_free_for_the_next_call_as_soon_as_one_is_answered(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer
) -> None:
    tenant = await opened(db, make_tenant, far, far=1)
    headers = {"Authorization": f"Bearer {tenant.api_key}", "X-User-ID": tenant.user}
    statuses = []
    async with aiohttp.ClientSession(house.url, headers=headers) as http:
        for _ in range(10):
            async with http.post("/v1/chat/completions", json=WANTED) as answer:
                await answer.read()
                statuses.append(answer.status)
    assert statuses == [200] * 10


async def test_mj17_a_call_goes_on_to_a_provider_that_has_room_and_its_receipt_says_why(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    tenant = await opened(db, make_tenant, far, small=1, large=None)
    async with filling(house, tenant, far, superuser):
        status, _, headers = await ask(house, tenant, WANTED)
        rules = superuser.execute("SELECT rule FROM limner.provider_call WHERE job_id = %s", [headers["x-limner-job"]])

    assert (status, headers["x-limner-provider"]) == (200, "large")
    assert rules.fetchall() == [("2 of 2 by priority 2, after small was full",)]


async def test_mj17_a_call_whose_provider_fails_finds_the_next_one_full(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    """A place is taken also by whoever comes from a provider without a cap."""
    tenant = await opened(db, make_tenant, far, large=None, small=1)
    far.then(BROKEN)
    before = len(far.asked)
    async with filling(house, tenant, far, superuser):  # failed at the first one, and works at the second
        await eventually(lambda: len(far.asked) == before + 2)
        far.then(BROKEN)
        status, body, headers = await ask(house, tenant, WANTED)
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "provider_unavailable", "1")
        assert books(superuser, tenant)[-1] == ("failed", 0)
        assert acts.count(superuser, QUEUED, tenant.org_id) == 1


async def test_mj4_what_was_answered_is_told_again_while_nobody_can_be_asked(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    tenant = await opened(db, make_tenant, far, far=None)
    key = {"Idempotency-Key": "before"}
    first = await ask(house, tenant, WANTED, key)
    far.then(Says(429, {"error": {"message": "slow down"}}, {"Retry-After": "60"}))
    await ask(house, tenant, WANTED)
    before = len(far.asked)

    again = await ask(house, tenant, WANTED, key)
    other = await ask(house, tenant, WANTED | {"temperature": 1}, key)
    fresh = await ask(house, tenant, WANTED, {"Idempotency-Key": "after"})

    assert (again[0], again[1], again[2]["idempotent-replayed"]) == (200, first[1], "true")
    assert (other[0], other[1]["error"]["code"]) == (422, "idempotency_key_reused")
    assert (fresh[0], fresh[1]["error"]["code"]) == (503, "provider_unavailable")
    assert len(far.asked) == before
    assert len(books(superuser, tenant)) == 2


async def test_mj17_jobs_and_calls_share_the_places(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    tenant = await opened(db, make_tenant, far, far=1)
    acts.empty_queue(superuser)
    (model_id,) = superuser.execute("SELECT id FROM limner.model WHERE org_id = %s", [tenant.org_id]).fetchall()[0]
    wanted = replace(acts.request(tenant), model_id=model_id, model=MODEL, kind="text.generate")
    async with db.tenant_single(tenant.org_id) as tx:
        job_id = (await jobs.submit(tx, ids.new(), wanted)).job_id

    async with filling(house, tenant, far, superuser):
        assert await acts.claim(db) == []
    await eventually(lambda: acts.count(superuser, QUEUED, tenant.org_id) == 1)  # the stream is drained
    assert [held.job_id for held in await acts.claim(db, lease_s=60)] == [job_id]
    status, body, _ = await ask(house, tenant, WANTED)
    assert (status, body["error"]["code"]) == (503, "provider_unavailable")
