"""Uploads with a bucket that speaks S3: the client puts into the bucket itself, and only what was signed for."""

import base64
import hashlib
from collections.abc import AsyncIterator

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from tests.conftest import Server, Tenant
from tests.emulators import bucket
from tests.emulators.bucket import Emulator
from tests.media.sending import UPLOADS, Sender
from tests.running import Api, Client
from tests.web.pictures import png

PICTURE = png(40, 30)


@pytest_asyncio.fixture(scope="module")
async def emulator() -> AsyncIterator[Emulator]:
    async with bucket.running() as emulator:
        yield emulator


@pytest_asyncio.fixture(scope="module", name="over_bucket")
async def api_over_bucket(server: Server, emulator: Emulator) -> AsyncIterator[Api]:
    more = {"LIMNER_DATABASE_URL": server.url, "LIMNER_STORE_URL": "s3://pictures/limner"}
    process = Api(server.home, **more, **emulator.environment)
    yield process
    process.stop()


@pytest.fixture
def sender(
    http: aiohttp.ClientSession, over_bucket: Api, server: Server, tenant: Tenant, superuser: psycopg.Connection
) -> Sender:
    return Sender(Client(http, over_bucket.url, tenant.api_key), server, tenant, superuser)


def kept(emulator: Emulator, sender: Sender) -> list[str]:
    return sorted(key.removeprefix("pictures/limner/") for key in emulator.objects if str(sender.tenant.org_id) in key)


async def test_a_picture_goes_straight_into_the_bucket_and_comes_back(sender: Sender, emulator: Emulator) -> None:
    before = emulator.presigned
    upload = await sender.pending(PICTURE)
    assert upload["upload"]["url"].startswith(f"{emulator.url}/pictures/limner/q/")

    assert (await sender.complete(upload["id"])).json["code"] == "not_uploaded"
    assert await sender.put(upload["upload"], PICTURE) == 200
    done = await sender.complete(upload["id"])

    assert (done.status, done.json["status"]) == (200, "ready"), done.body
    assert emulator.presigned == before + 1
    assert (await sender.client.call("GET", done.json["url"])).status == 200
    assert (await sender.client.call("GET", done.json["url"] + "&w=320")).status == 200
    assert [key.partition("/")[0] for key in kept(emulator, sender)] == ["u", "v"]
    assert (await sender.client.call("DELETE", f"{UPLOADS}/{upload['id']}")).status == 204
    assert kept(emulator, sender) == []
    assert sender.usage() == (0, 0)


async def test_ps7_the_bucket_takes_nothing_but_what_was_signed(sender: Sender, emulator: Emulator) -> None:
    upload = await sender.pending(PICTURE)
    ticket, other = upload["upload"], PICTURE[:-1] + b"x"
    digest = base64.b64encode(hashlib.sha256(other).digest()).decode()
    refused = len(emulator.refused)

    statuses = [
        await sender.put(ticket, PICTURE + b"x"),
        await sender.put(ticket, PICTURE[:-1]),
        await sender.put(ticket, other),
        await sender.put(ticket, other, **{"x-amz-checksum-sha256": digest}),
        await sender.put(ticket, PICTURE, **{"Content-Type": "text/html"}),
        await sender.put(ticket, PICTURE, **{"If-None-Match": ""}),
        await sender.put({**ticket, "url": ticket["url"].replace(upload["id"], "another")}, PICTURE),
        await sender.put({**ticket, "url": ticket["url"].replace("X-Amz-Expires=", "X-Amz-Expires=9")}, PICTURE),
    ]

    assert statuses == [403] * len(statuses)
    assert len(emulator.refused) == refused + len(statuses)
    assert kept(emulator, sender) == []
    assert await sender.put(ticket, PICTURE) == 200
    assert await sender.put(ticket, PICTURE) == 412


async def test_what_the_bucket_has_is_hashed_by_limner_too(sender: Sender, emulator: Emulator) -> None:
    """A bucket that is told of no checksum, or knows none, keeps whatever comes."""
    for changed, code in ((PICTURE[:-1], "checksum_mismatch"), (PICTURE[:-1] + b"x", "checksum_mismatch")):
        upload = await sender.pending(PICTURE)
        emulator.objects[f"pictures/limner/q/{sender.tenant.org_id}/{upload['id']}"] = changed

        answer = await sender.complete(upload["id"])

        assert (answer.status, answer.json["code"]) == (422, code)
        assert kept(emulator, sender) == []
        assert sender.usage() == (0, 0)
