"""Providers' webhooks: they wake whoever waits, they bring back a task whose name was lost, and a forged one changes nothing."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.kit.money import MC
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators import replicate_server
from tests.emulators.replicate_server import ReplicateServer
from tests.faults.cluster import ApiProcess, Cluster, eventually
from tests.running import Client

KEY = "r8-secret-77c1aa07d2"
OWN = "acme/own"
PUBLIC = {"LIMNER_PUBLIC_URL": "https://limner.example"}
SLOW_S = 30.0
CALL = "SELECT state, provider_task_id, send_no FROM limner.provider_call WHERE org_id = %s"


@pytest_asyncio.fixture(scope="module")
async def far() -> AsyncIterator[ReplicateServer]:
    async with replicate_server.running(KEY) as server:
        yield server


@pytest.fixture(scope="module")
def api(server: Server, db: Database, far: ReplicateServer) -> Iterator[ApiProcess]:
    """One API and one worker for this file, of an installation that the world outside reaches."""
    cluster = Cluster(server)
    api = cluster.api(wait=False, LIMNER_PUBLIC_URL=PUBLIC["LIMNER_PUBLIC_URL"])
    cluster.worker(**PUBLIC | far.environment)
    api.wait()
    far.hooks_to = api.url
    yield api
    cluster.end()


@pytest_asyncio.fixture
async def client(
    db: Database, tenant: Tenant, api: ApiProcess, far: ReplicateServer, http: aiohttp.ClientSession
) -> Client:
    """Whose provider is asked so seldom that only a hook explains a quick end."""
    far.calm_down()
    far.created.clear()
    far.hooked.clear()
    far.done = None
    kind: offers.Kind = "image.generate"
    facts = {"name": OWN, "display_name": "Own", "kind": kind, "input_schema": offers.SCHEMAS[kind], "price_mc": MC}
    row = {
        "name": "far",
        "display_name": "Far",
        "adapter": "replicate",
        "base_url": far.url,
        "config": {"poll_s": SLOW_S},
    }
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(tx, facts)
        await catalog.put_provider(tx, row)
        await catalog.put_route(tx, OWN, "far", provider_model="acme/painter")
    return Client(http, api.url, tenant.api_key)


async def order(client: Client) -> str:
    accepted = await client.generate(OWN, input={"prompt": "a hare"})
    assert accepted.status == 202, accepted.body
    return str(accepted.json["job_id"])


async def test_a_hook_ends_the_waiting_and_the_provider_is_asked_for_the_truth(
    client: Client, far: ReplicateServer
) -> None:
    far.done = asyncio.Event()
    far.ends("hangs")
    began = time.monotonic()
    job_id = await order(client)
    [task] = await eventually(lambda: far.created)
    assert task.asked["webhook"].startswith("https://limner.example/hooks/replicate/")
    assert task.asked["webhook_events_filter"] == ["start", "completed"]
    await eventually(lambda: task.polls)

    far.done.set()

    assert (await client.finished(job_id))["status"] == "succeeded"
    assert time.monotonic() - began < SLOW_S
    assert set(far.hooked) == {204}


async def test_mj9_a_task_whose_name_was_lost_is_brought_back_by_its_hook(
    client: Client, far: ReplicateServer, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    far.then("hangs up afterwards")

    job = await client.finished(await order(client))

    assert (job["status"], job["tokens_charged"], len(far.created)) == ("succeeded", 1, 1)
    row = superuser.execute(CALL, [tenant.org_id]).fetchall()
    assert row == [("done", far.created[0].id, 1)]


async def test_mj9_a_forged_hook_changes_nothing(
    client: Client, far: ReplicateServer, tenant: Tenant, superuser: psycopg.Connection, api: ApiProcess
) -> None:
    far.ends("hangs")
    job_id = await order(client)
    [task] = await eventually(lambda: far.created)
    await eventually(lambda: task.polls == 2)  # the second at its start, by the provider's own hook
    before = (superuser.execute(CALL, [tenant.org_id]).fetchall(), task.polls)
    path = urlsplit(task.asked["webhook"]).path
    prefix, _, token = path.rpartition("/")
    packed, _, signature = token.partition(".")
    forged = [
        f"{prefix}/{packed}.{signature[::-1]}", f"{prefix}/{packed[:-4]}AAAA.{signature}", f"{prefix}/x", f"{prefix}/.",
        f"{prefix}/{'A' * 5000}", f"{prefix}/%00.%ff", path.replace("replicate", "defapi"), f"{prefix}/{packed}", f"{prefix}/é.ü",
    ]  # fmt: skip

    async with aiohttp.ClientSession() as http:
        statuses = []
        for where in forged:
            async with http.post(api.url + where, json={"id": "evil1", "status": "succeeded"}) as answer:
                statuses.append(answer.status)
        bad = []
        for body in (b"", b"[]", b"{", b'{"id": "../x"}', b'{"id": 7}'):
            async with http.post(api.url + path, data=body) as answer:
                bad.append(answer.status)
        async with http.get(api.url + path) as answer:
            got = answer.status
    await asyncio.sleep(0.3)

    assert (set(statuses), set(bad), got) == ({404}, {400}, 405)
    assert (superuser.execute(CALL, [tenant.org_id]).fetchall(), task.polls) == before
    cancelled: Any = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    assert cancelled.json["status"] == "requested"


async def test_a_true_hook_that_lies_is_not_believed(
    client: Client, far: ReplicateServer, tenant: Tenant, superuser: psycopg.Connection, db: Database
) -> None:
    """Another name is not taken in the place of the one that is known, and a success is one when the provider says so itself."""
    far.done = asyncio.Event()
    far.ends("hangs")
    job_id = await order(client)
    [task] = await eventually(lambda: far.created)
    await eventually(lambda: task.polls == 2)  # the second at its start, by the provider's own hook

    assert await far.post(task, {"id": "evil1", "status": "succeeded", "output": ["https://evil.example/x.png"]}) == 204

    await eventually(lambda: task.polls == 3)
    assert superuser.execute(CALL, [tenant.org_id]).fetchall() == [("accepted", task.id, 1)]
    assert (await client.call("GET", f"/api/v1/jobs/{job_id}")).json["status"] == "running"
    far.done.set()
    job = await client.finished(job_id)
    assert (job["status"], "evil" in json.dumps(job)) == ("succeeded", False)
    assert await far.post(task, {"id": task.id}) == 204, "the job is over: nothing to do, and no error for the provider"
    assert await acts.books(db, tenant.org_id) == {}
