"""From an order over HTTP to the receiver's verified delivery and the receipt that tells of it: API and worker as they are started."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from standardwebhooks import Webhook

from limner.db.pools import Database
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators import receiver as emulator
from tests.emulators.receiver import Receiver
from tests.faults.cluster import eventually
from tests.hub.api.conftest import CheckedClient
from tests.running import Api, Client, Process, start_worker


@dataclass(frozen=True)
class Installation:
    """Processes that may send to the receiver."""

    api: Api
    worker: Process


@pytest_asyncio.fixture(scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with emulator.running() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def installation(server: Server, db: Database, receiver: Receiver) -> Iterator[Installation]:
    env = {"LIMNER_DATABASE_URL": server.url, "LIMNER_EGRESS_ALLOW_ORIGINS": receiver.url}
    api, worker = Api(server.home, **env), start_worker(server.home, **env)
    yield Installation(api, worker)
    worker.stop()
    api.stop()


@pytest.fixture
def client(
    http: aiohttp.ClientSession, installation: Installation, tenant: Tenant, superuser: psycopg.Connection
) -> Client:
    acts.empty_queue(superuser)
    return CheckedClient(http, installation.api.url, tenant.api_key)


async def test_mj16_an_order_over_http_is_told_to_a_receiver_that_verifies_it(
    client: Client, installation: Installation, receiver: Receiver
) -> None:
    made = await client.call("POST", "/api/v1/webhooks", {"url": f"{receiver.url}/shop/200"})
    assert made.status == 201, made.body

    accepted = await client.generate("local/canvas", input={"prompt": "a lighthouse", "size": 512})
    job = await client.finished(accepted.json["job_id"])
    [got] = await eventually(lambda: receiver.of("shop"))

    told: dict[str, Any] = Webhook(made.json["secret"]).verify(got.body, dict(got.headers))
    assert (told["type"], told["job_id"], told["status"]) == ("job.completed", job["job_id"], "succeeded")
    assert (told["user_id"], told["tokens_charged"]) == ("ann", 1)
    async with client.http.get(told["outputs"][0]["url"].replace("http://127.0.0.1:8000", client.url)) as picture:
        assert (picture.status, picture.content_type) == (200, "image/png")
    log = (await client.call("GET", "/api/v1/jobs/" + job["job_id"] + "/receipt")).json["events"]
    assert log[-1]["type"] == "job.completed"

    async def recorded() -> Any:
        receipt = (await client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json
        return [one for one in receipt["webhooks"] if one["status"] == "delivered"]

    [sent] = await eventually(recorded)
    assert got.id == f"msg_{sent['delivery_id']}"
    assert [a["outcome"] for a in sent["attempts"]] == ["delivered"]
    client.user = None
    page = (await client.call("GET", "/api/v1/events?after=0")).json["events"]
    assert (told["id"], told["seq"]) == (page[-1]["id"], page[-1]["seq"])
    secret = made.json["secret"].removeprefix("whsec_")[:20]
    for output in (installation.api.output(), installation.worker.output()):
        assert secret not in output
    lines = [json.loads(line) for line in installation.worker.output().splitlines() if '"webhook.sent"' in line]
    mine = [line for line in lines if line["delivery"] == sent["delivery_id"]]  # others' are due, too
    assert [(line["outcome"], line["status"]) for line in mine] == [("delivered", 200)]


async def test_the_workers_numbers_tell_of_webhooks(client: Client) -> None:
    text = (await client.call("GET", "/metrics")).body.decode()

    assert "limner_webhook_due_seconds" in text
    assert "limner_webhooks_failing" in text
