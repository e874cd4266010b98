"""Jobs take pictures that were uploaded before: `upload:<id>` wherever a data URI may stand."""

import asyncio
from typing import Any

import aiohttp
import psycopg
import pytest
import pyvips

from limner.db.pools import Database
from limner.tenancy import api_keys, apps
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.api.refusing import GENERATE, Refusing
from tests.media.sending import UPLOADS, Sender
from tests.running import Api, Client, Process
from tests.web.pictures import png, uri

PICTURE = png(48, 32)
OPAQUE = pyvips.Image.black(48, 32) + 255
HOLE = bytes(
    pyvips.Image.black(48, 32, bands=3)
    .bandjoin(OPAQUE.draw_rect(0, 9, 9, 8, 8, fill=True))
    .cast("uchar")
    .copy(interpretation="srgb")
    .pngsave_buffer()
)


@pytest.fixture
def sender(client: Client, server: Server, tenant: Tenant, superuser: psycopg.Connection) -> Sender:
    return Sender(client, server, tenant, superuser)


def describing(*pictures: str) -> dict[str, Any]:
    return {"model": "local/describe", "input": {"images": list(pictures)}}


async def test_a_job_works_on_uploaded_pictures_and_records_them_like_others(
    sender: Sender, worker: Process, superuser: psycopg.Connection
) -> None:
    picture, mask = await sender.ready(PICTURE), await sender.ready(HOLE)
    body = {"model": "local/inpaint", "input": {"images": [f"upload:{picture['id']}"], "mask": f"upload:{mask['id']}"}}

    accepted = await sender.client.call("POST", GENERATE, body)
    assert accepted.status == 202, accepted.body
    job = await sender.client.finished(accepted.json["job_id"])

    assert job["status"] == "succeeded", job
    assert (job["outputs"][0]["width"], job["outputs"][0]["height"]) == (48, 32)
    row = superuser.execute("SELECT input FROM limner.job WHERE id = %s", [job["job_id"]]).fetchone()
    assert row is not None
    assert row[0]["images"][0] == {
        "type": "image/png", "width": 48, "height": 32, "bytes": picture["bytes"],
        "sha256": picture["url"].partition("?")[0].rpartition("/")[2].removesuffix(".png"),
    }  # fmt: skip


async def test_an_upload_that_goes_after_the_job_was_taken_costs_the_job_nothing(
    sender: Sender, worker: Process
) -> None:
    picture = await sender.ready(PICTURE)
    accepted = await sender.client.call("POST", GENERATE, describing(f"upload:{picture['id']}"))
    await sender.client.call("DELETE", f"{UPLOADS}/{picture['id']}")

    assert (await sender.client.finished(accepted.json["job_id"]))["status"] == "succeeded"


async def test_the_same_request_with_its_key_is_the_same_job(sender: Sender) -> None:
    picture = await sender.ready(PICTURE)
    body = describing(f"upload:{picture['id']}") | {"idempotency_key": "once"}

    answers = await asyncio.gather(*(sender.client.call("POST", GENERATE, body) for _ in range(4)))

    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["job_id"] for answer in answers}) == 1


async def test_what_is_no_usable_upload_is_400_with_its_pointer_and_nothing_happens(
    refusing: Refusing, sender: Sender, make_tenant: MakeTenant, db: Database, http: aiohttp.ClientSession, api: Api, tenant: Tenant,
    server: Server, superuser: psycopg.Connection,
) -> None:  # fmt: skip
    pending = (await sender.pending(PICTURE))["id"]
    sent = await sender.sent(PICTURE)
    rejected = await sender.sent(b"%PDF-1.7")
    assert (await sender.complete(rejected)).status == 422
    deleted = (await sender.ready(PICTURE))["id"]
    await sender.client.call("DELETE", f"{UPLOADS}/{deleted}")
    other = await make_tenant()
    foreign = await Sender(Client(http, api.url, other.api_key), server, other, superuser).ready(PICTURE)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        sibling = await apps.create(tx, "sibling", "Sibling", actor="test")
        _, key = await api_keys.create(tx, sibling, actor="test", scopes=api_keys.SCOPES)
    of_sibling = await Sender(Client(http, api.url, key), server, tenant, superuser).ready(PICTURE)
    of_bob = await Sender(Client(http, api.url, tenant.api_key, "bob"), server, tenant, superuser).ready(PICTURE)

    for name, code in (
        (pending, "upload_not_ready"), (sent, "upload_not_ready"), (rejected, "upload_not_ready"), (deleted, "upload_not_found"),
        (foreign["id"], "upload_not_found"), (of_sibling["id"], "upload_not_found"), (of_bob["id"], "upload_not_found"),
        ("", "upload_not_found"), ("x", "upload_not_found"), (pending.upper() + " ", "upload_not_found"),
        ("../../etc/passwd", "upload_not_found"), ("' OR 1=1 --", "upload_not_found"),
    ):  # fmt: skip
        answer = await refusing.post(describing(f"upload:{name}"))
        assert (answer.status, answer.json["code"]) == (400, code), (name, answer.body)
        assert list(answer.json["details"]) == ["/input/images/0"]
    masked = {"model": "local/inpaint", "input": {"images": [uri(PICTURE)], "mask": f"upload:{pending}"}}
    answer = await refusing.post(masked)
    assert (answer.status, list(answer.json["details"])) == (400, ["/input/mask"])


async def test_what_the_app_brought_for_everybody_any_user_of_it_may_use(sender: Sender) -> None:
    sender.client.user = None
    everybodys = await sender.ready(PICTURE)

    sender.client.user = "ann"
    assert (await sender.client.call("POST", GENERATE, describing(f"upload:{everybodys['id']}"))).status == 202
    assert await sender.get(everybodys["id"]) == 404
