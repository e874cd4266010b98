"""An erased job over HTTP: it says so, shows no outputs, and its old URL is gone."""

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub.retention import Retention
from limner.media.store import ObjectStore
from tests.conftest import Server, Tenant
from tests.running import Client

CANVAS: dict[str, Any] = {"prompt": "a hare", "size": 512}
pytestmark = pytest.mark.usefixtures("worker")


async def test_an_erased_job_says_so_and_its_url_is_gone(
    client: Client, db: Database, tenant: Tenant, server: Server, superuser: psycopg.Connection
) -> None:
    key = {"Idempotency-Key": "one"}
    sent = {"model": "local/canvas", "input": CANVAS}
    accepted = await client.call("POST", "/api/v1/generate", sent, headers=key)
    job_id = accepted.json["job_id"]
    done = await client.finished(job_id)
    path = f"/api/v1/jobs/{job_id}"
    tag = (await client.call("GET", path)).headers["etag"]
    url = done["outputs"][0]["url"]
    assert (await client.call("GET", url)).status == 200
    receipt = (await client.call("GET", f"{path}/receipt")).json

    with superuser.transaction():
        superuser.execute("SET LOCAL session_replication_role = replica")
        superuser.execute(
            "UPDATE limner.job SET created_at = created_at - interval '9 d', finished_at = finished_at - interval '9 d'"
            " WHERE id = %s",
            [job_id],
        )
    superuser.execute("UPDATE limner.app SET keep_days = 7 WHERE org_id = %s", [tenant.org_id])
    facts = (await Retention(db, ObjectStore(None, server.home), 0, 0).erase_old(datetime.now(UTC))).facts
    assert facts == {"erased": 1, "failed": 0}

    after = await client.call("GET", path, headers={"If-None-Match": tag})
    assert (after.status, after.json["status"], after.json["erased"]) == (200, "succeeded", True)
    assert "outputs" not in after.json
    assert after.json["tokens_charged"] == done["tokens_charged"]
    assert (await client.call("GET", url)).status == 404
    shown = (await client.call("GET", f"{path}/receipt")).json
    assert {k: v for k, v in shown.items() if "_at" not in k} == {k: v for k, v in receipt.items() if "_at" not in k}
    again = await client.call("POST", "/api/v1/generate", sent, headers=key)
    assert (again.status, again.body) == (202, accepted.body)
