"""A description is a job like any other; what it says stays on the upload."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub.retention import Retention
from limner.kit.cpu import CpuPool
from limner.media.audio import AudioLimits, Recordings
from limner.media.processing import Processor
from limner.media.sandbox import Sandbox
from limner.media.sniffing import ImageLimits
from limner.media.store import ObjectStore
from limner.media.tending import ROLE, UploadTending
from limner.media.uploads import Quota
from tests.conftest import Server, Tenant
from tests.media.sending import UPLOADS, Sender
from tests.running import PATIENCE_S, Answer, Client, Process
from tests.web.pictures import png

PICTURE = png(48, 32)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def sender(client: Client, server: Server, tenant: Tenant, superuser: psycopg.Connection) -> Sender:
    return Sender(client, server, tenant, superuser)


async def describe(sender: Sender, upload_id: str) -> Answer:
    return await sender.client.call("POST", f"{UPLOADS}/{upload_id}/describe")


async def described(sender: Sender, upload_id: str, status: str = "ready") -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while (shown := await sender.get(upload_id))["description"]["status"] != status:
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.05)
    return shown


async def test_what_a_picture_shows_stands_on_it_and_was_paid_for_once(sender: Sender, worker: Process) -> None:
    upload = await sender.ready(PICTURE)
    assert "description" not in upload

    answers = await asyncio.gather(*(describe(sender, upload["id"]) for _ in range(5)))
    shown = await described(sender, upload["id"])

    assert {answer.status for answer in answers} <= {200, 202}
    job = await sender.client.finished(shown["description"]["job_id"])
    assert shown["description"]["text"] == job["outputs"][0]["text"]
    assert shown["description"]["tags"] == job["outputs"][0]["facts"]["tags"]
    again = await describe(sender, upload["id"])
    assert (again.status, again.json) == (200, shown)
    jobs = (await sender.client.call("GET", "/api/v1/jobs")).json["jobs"]
    assert [one["job_id"] for one in jobs] == [job["job_id"]]
    listed = (await sender.client.call("GET", UPLOADS)).json["uploads"]
    assert listed == [shown]


async def test_it_stays_when_the_jobs_outputs_are_erased(
    sender: Sender, worker: Process, db: Database, server: Server, superuser: psycopg.Connection
) -> None:
    """Nobody reads the upload meanwhile: a worker takes the words over."""
    upload = await sender.ready(PICTURE)
    job_id = (await describe(sender, upload["id"])).json["description"]["job_id"]
    await sender.client.finished(job_id)
    sender.age(upload["id"], 400)
    store = ObjectStore(None, server.home)
    bounds, quota = ImageLimits(2**20, 10**6, 1000), Quota(2**30, 100)
    recordings = Recordings(CpuPool(1, 2 << 30, 30.0), AudioLimits(2**20, 60))
    await UploadTending(db, store, Processor(db, ROLE, store, Sandbox(), bounds, quota, recordings)).tend(NOW)
    superuser.execute("UPDATE limner.app SET keep_days = 1 WHERE org_id = %s", [sender.tenant.org_id])
    superuser.execute("ALTER TABLE limner.job DISABLE TRIGGER job_transition")
    superuser.execute(
        "UPDATE limner.job SET created_at = created_at - interval '9 days', finished_at = finished_at - interval '9 days' WHERE id = %s",
        [job_id],
    )
    superuser.execute("ALTER TABLE limner.job ENABLE TRIGGER job_transition")
    await Retention(db, store, 0, 0).erase_old(NOW)

    shown = await sender.get(upload["id"])

    assert (await sender.client.finished(job_id))["erased"] is True
    assert shown["description"]["status"] == "ready"
    assert shown["description"]["text"]


async def test_a_job_that_failed_can_be_ordered_again(
    sender: Sender, worker: Process, superuser: psycopg.Connection
) -> None:
    upload = await sender.ready(PICTURE)
    first = (await describe(sender, upload["id"])).json["description"]["job_id"]
    await sender.client.finished(first)
    superuser.execute("ALTER TABLE limner.job DISABLE TRIGGER job_transition")
    superuser.execute("UPDATE limner.job SET outputs = NULL WHERE id = %s", [first])
    superuser.execute("ALTER TABLE limner.job ENABLE TRIGGER job_transition")
    assert (await described(sender, upload["id"], "failed"))["description"]["job_id"] == first

    second = (await describe(sender, upload["id"])).json["description"]["job_id"]

    assert second != first
    assert (await described(sender, upload["id"]))["description"]["job_id"] == second


async def test_what_is_not_ready_or_not_paid_for_is_refused_and_nothing_is_ordered(
    sender: Sender, superuser: psycopg.Connection
) -> None:
    pending = await sender.pending(PICTURE)
    not_ready = await describe(sender, pending["id"])
    upload = await sender.ready(PICTURE)
    sender.client.user = None
    everybodys = await sender.ready(PICTURE)
    sender.client.user = "poor"
    poors = await sender.ready(PICTURE)

    assert (not_ready.status, not_ready.json["code"]) == (409, "upload_not_ready")
    assert (await describe(sender, upload["id"])).status == 404
    assert (await describe(sender, everybodys["id"])).status == 404
    refused = await describe(sender, poors["id"])
    assert (refused.status, refused.json["code"]) == (402, "insufficient_tokens")
    assert "description" not in await sender.get(poors["id"])
    row = superuser.execute("SELECT count(*) FROM limner.job WHERE org_id = %s", [sender.tenant.org_id]).fetchone()
    assert row == (0,)
