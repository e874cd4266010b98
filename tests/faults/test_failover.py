"""Failover from end to end: the local provider twice, once without the time to do anything."""

from collections.abc import Iterator

import aiohttp
import pytest

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.local.models import CANVAS
from limner.kit.money import MC
from tests import acts
from tests.conftest import Server, Tenant
from tests.faults.cluster import ApiProcess, Cluster
from tests.running import Client

MODEL = "acme/canvas"


@pytest.fixture(scope="module")
def api(server: Server, db: Database) -> Iterator[ApiProcess]:
    """One API and one worker for this file."""
    cluster = Cluster(server)
    process = cluster.api(wait=False)
    cluster.worker()
    process.wait()
    yield process
    cluster.end()


async def _two_instances(db: Database, tenant: Tenant, *, second_limit_ms: int | None) -> None:
    """In the organization's own catalog: `hasty` first, with one millisecond a picture, then `steady`."""
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(
            tx,
            {
                "name": MODEL,
                "display_name": "Canvas",
                "kind": CANVAS.kind,
                "input_schema": CANVAS.input_schema,
                "price_mc": 2 * MC,
            },
        )
        for place, (name, limit) in enumerate((("hasty", 1), ("steady", second_limit_ms)), start=1):
            config = {} if limit is None else {"time_limit_ms": limit}
            await catalog.put_provider(tx, {"name": name, "display_name": name, "adapter": "local", "config": config})
            await catalog.put_route(tx, MODEL, name, provider_model=CANVAS.name, priority=place)


async def test_the_second_instance_delivers_and_the_receipt_tells_the_story(
    db: Database, tenant: Tenant, api: ApiProcess, http: aiohttp.ClientSession
) -> None:
    await _two_instances(db, tenant, second_limit_ms=None)
    client = Client(http, api.url, tenant.api_key)

    accepted = await client.generate(MODEL, input={"prompt": "a harbour", "size": 1024, "num_outputs": 2})
    job = await client.finished(accepted.json["job_id"])

    assert (job["status"], job["provider_used"], job["tokens_charged"]) == ("succeeded", "steady", 4)
    for output in job["outputs"]:
        assert (await client.call("GET", output["url"])).body[:4] == b"\x89PNG"
    receipt = (await client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json
    first, second = receipt["attempts"]
    assert (first["provider"], first["outcome"], first["error"]["code"]) == ("hasty", "error", "provider_timeout")
    assert (second["provider"], second["outcome"]) == ("steady", "done")
    assert (first["run"], second["run"]) == (1, 1), "one run: no waiting in between"
    assert first["rule"] == "first by priority 1 of 2"
    assert second["rule"] == receipt["rule"] == "2 of 2 by priority 2, after hasty failed"
    assert [event["type"] for event in receipt["events"]] == ["job.started", "job.attempt_failed", "job.completed"]
    assert [(t["kind"], t["credits"]) for t in receipt["transfers"]] == [("hold", "4"), ("post", "4")]
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.long
async def test_when_no_instance_delivers_the_job_fails_free_of_charge(
    db: Database, tenant: Tenant, api: ApiProcess, http: aiohttp.ClientSession
) -> None:
    await _two_instances(db, tenant, second_limit_ms=1)
    client = Client(http, api.url, tenant.api_key)

    accepted = await client.generate(MODEL, input={"prompt": "a harbour", "size": 1024})
    job = await client.finished(accepted.json["job_id"])

    assert (job["status"], job["tokens_charged"], job["error"]["code"]) == ("failed", 0, "provider_timeout")
    receipt = (await client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json
    assert [(a["run"], a["provider"]) for a in receipt["attempts"]] == [
        (run, provider) for run in (1, 2, 3) for provider in ("hasty", "steady")
    ]
    assert receipt["credits"]["after"] == receipt["credits"]["before"] == "1000"
    assert await acts.books(db, tenant.org_id) == {}
