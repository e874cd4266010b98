"""PS7: what an upload may be is signed: nobody puts more, other, later or twice. And the quota is exact, whatever races."""

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import psycopg
import pytest

from limner.media.tickets import TokenTickets
from tests import tiers
from tests.conftest import MakeTenant, Server
from tests.media.sending import UPLOADS, Sender
from tests.running import Api, Client
from tests.tally import Tally
from tests.web import raw
from tests.web.pictures import png

PICTURE = png(30, 20)
BAD = frozenset({400, 403, 404, 405, 408, 411, 412, 413, 415, 422})


@dataclass
class Attempt:
    """A ticket for PICTURE, and what an attacker changes of the request."""

    sender: Sender
    rng: random.Random
    upload: dict[str, Any]

    @property
    def url(self) -> str:
        url: str = self.upload["upload"]["url"]
        return url

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.upload["upload"]["headers"])

    async def send(
        self, *, url: str | None = None, body: bytes = PICTURE, method: str = "PUT", drop: str = "", **changed: str
    ) -> int:
        headers = self.headers | {name.replace("_", "-"): value for name, value in changed.items()}
        headers.pop(drop, None)
        target = (url or self.url).removeprefix(self.sender.client.url)
        request = raw.request(method, target, headers | {"Connection": "close"}, b"")
        lines = request.replace(b"Content-Type: application/json\r\n", b"") if drop == "Content-Type" else request
        if drop == "Content-Length":
            lines = lines.replace(b"Content-Length: 0\r\n", b"")
        try:
            return (await raw.exchange(self.sender.client.url, lines + body)).status
        except (ConnectionError, asyncio.IncompleteReadError):
            return 400  # the connection was closed on it


async def longer_as_told(a: Attempt) -> int:
    more = PICTURE + a.rng.randbytes(a.rng.randint(1, 4000))
    return await a.send(body=more, Content_Length=str(len(more)))


async def longer_than_told(a: Attempt) -> int:
    """More bytes than the length says are no part of this request: the object is what was announced, or nothing."""
    status = await a.send(body=a.rng.randbytes(len(PICTURE)) + PICTURE)
    assert a.sender.objects("q") == []
    return status


async def shorter(a: Attempt) -> int:
    less = PICTURE[: a.rng.randint(1, len(PICTURE) - 1)]
    return await a.send(body=less, Content_Length=str(len(less)))


async def another_body(a: Attempt) -> int:
    return await a.send(body=a.rng.randbytes(len(PICTURE)))


async def another_digest(a: Attempt) -> int:
    body = a.rng.randbytes(len(PICTURE))
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    return await a.send(body=body, Content_Digest=f"sha-256=:{digest}:")


async def no_digest(a: Attempt) -> int:
    return await a.send(drop="Content-Digest")


async def odd_digest(a: Attempt) -> int:
    value = a.headers["Content-Digest"]
    return await a.send(
        Content_Digest=a.rng.choice([value.upper(), value + ", md5=:x:", value[8:], "sha-256=::", value * 2])
    )


async def another_type(a: Attempt) -> int:
    return await a.send(
        Content_Type=a.rng.choice(["text/html", "image/svg+xml", "image/png", "application/octet-stream; x=1", "*/*"])
    )


async def replacing(a: Attempt) -> int:
    if a.rng.random() < 0.3:
        return await a.send(drop="If-None-Match")
    return await a.send(If_None_Match=a.rng.choice(['"x"', ""]))


async def chunked(a: Attempt) -> int:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE)
    return await a.send(body=body, drop="Content-Length", Transfer_Encoding="chunked")


async def both_lengths(a: Attempt) -> int:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE)
    return await a.send(body=body, Transfer_Encoding="chunked")


async def another_key(a: Attempt) -> int:
    own = a.upload["id"]
    other = a.rng.choice(
        [str(uuid4()), f"../u/{own}", own.upper(), f"{own}/x", f"{own}%2f..", own.replace("-", ""), ""]
    )
    return await a.send(url=a.url.replace(own, other))


async def another_organization(a: Attempt) -> int:
    return await a.send(url=a.url.replace(str(a.sender.tenant.org_id), str(uuid4())))


async def another_prefix(a: Attempt) -> int:
    return await a.send(
        url=a.url.replace("/media/q/", a.rng.choice(["/media/u/", "/media/v/", "/media/outputs/", "/media/"]))
    )


async def another_signature(a: Attempt) -> int:
    start, _, signature = a.url.partition("&s=")
    at = a.rng.randrange(len(signature))
    flipped = signature[:at] + ("A" if signature[at] != "A" else "B") + signature[at + 1 :]
    return await a.send(
        url=a.rng.choice([f"{start}&s={flipped}", start, f"{start}&s=", a.url.replace("e=", "e=1"), a.url + "x"])
    )


async def later_than_signed(a: Attempt) -> int:
    """limner's own signature over an end that is past."""
    tickets = TokenTickets(a.sender.server.root, a.sender.client.url)
    key = f"q/{a.sender.tenant.org_id}/{a.upload['id']}"
    past = int(time.time()) - a.rng.randint(1, 10**6)
    signature = tickets._signature(key, len(PICTURE), hashlib.sha256(PICTURE).digest(), past)
    a.sender.superuser.execute(
        "UPDATE limner.upload SET expires_at = to_timestamp(%s) WHERE id = %s", [past, a.upload["id"]]
    )
    return await a.send(url=f"{a.sender.client.url}/media/{key}?e={past}&s={signature}")


async def another_method(a: Attempt) -> int:
    return await a.send(method=a.rng.choice(["POST", "PATCH", "DELETE", "GET"]))


async def after_deleting(a: Attempt) -> int:
    assert (await a.sender.client.call("DELETE", f"{UPLOADS}/{a.upload['id']}")).status == 204
    return await a.send()


ATTEMPTS: tuple[Callable[[Attempt], Awaitable[int]], ...] = (
    longer_as_told, longer_than_told, shorter, another_body, another_digest, no_digest, odd_digest, another_type, replacing,
    chunked, both_lengths, another_key, another_organization, another_prefix, another_signature, later_than_signed, another_method,
    after_deleting,
)  # fmt: skip


@pytest.mark.parametrize("count", tiers.counts(36, 198))
async def test_ps7_a_put_that_is_not_what_was_signed_is_refused(sender: Sender, tally: Tally, count: int) -> None:
    rng = random.Random(7)
    for number in range(count):
        attempt = ATTEMPTS[number % len(ATTEMPTS)]
        tried = Attempt(sender, rng, await sender.pending(PICTURE))
        status = await attempt(tried)
        assert status in BAD, (attempt.__name__, status)
        assert sender.objects() == [], attempt.__name__
        assert sender.incoming() == [], attempt.__name__
    tally("PS7", attempts=count, accepted=0)


async def test_ps7_the_same_request_unchanged_is_taken(sender: Sender) -> None:
    """The control: the attempts fail for what they change."""
    tried = Attempt(sender, random.Random(7), await sender.pending(PICTURE))

    assert await tried.send() == 200
    assert len(sender.objects("q")) == 1


async def test_ps7_of_several_puts_one_is_taken_and_none_after_it(sender: Sender) -> None:
    upload = await sender.pending(PICTURE)

    statuses = await asyncio.gather(*(sender.put(upload["upload"], PICTURE) for _ in range(8)))
    assert sorted(statuses) == [200] + [412] * 7
    assert await sender.put(upload["upload"], PICTURE) == 412

    assert (await sender.complete(upload["id"])).status == 200
    assert await sender.put(upload["upload"], PICTURE) == 412
    assert sender.objects("q") == []
    assert sender.incoming() == []


async def test_ps7_a_client_that_goes_away_leaves_nothing(sender: Sender) -> None:
    data = png(400, 400) + random.Random(1).randbytes(300_000)
    upload = await sender.pending(data)
    head = raw.request("PUT", upload["upload"]["url"].removeprefix(sender.client.url), upload["upload"]["headers"], b"")
    target = urlsplit(sender.client.url)
    for share in (0.0, 0.4, 0.99):
        _, writer = await asyncio.open_connection(target.hostname, target.port)
        writer.write(head + data[: int(len(data) * share)])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    quiet = 0
    for _ in range(100):  # the last of them may not have been taken up yet
        quiet = 0 if sender.incoming() else quiet + 1
        if quiet == 10:
            break
        await asyncio.sleep(0.05)

    assert (sender.incoming(), sender.objects()) == ([], [])
    assert (await sender.complete(upload["id"])).json["code"] == "not_uploaded"
    assert await sender.put(upload["upload"], data) == 200


async def test_a_page_of_another_origin_may_put_by_its_url(sender: Sender) -> None:
    upload = await sender.pending(PICTURE)
    url = upload["upload"]["url"]

    asked = await sender.client.call("OPTIONS", url)
    async with sender.client.http.put(url, data=PICTURE, headers=upload["upload"]["headers"]) as put:
        assert put.status == 200
        assert put.headers["access-control-allow-origin"] == "*"

    assert asked.status == 204
    assert asked.headers["access-control-allow-methods"] == "PUT"
    assert "content-digest" in asked.headers["access-control-allow-headers"]


FILES, BYTES = 12, 20_000


@pytest.fixture(scope="module")
def narrow(server: Server) -> Iterator[Api]:
    """An API with little room for uploads."""
    process = Api(
        server.home,
        LIMNER_DATABASE_URL=server.url,
        LIMNER_UPLOAD_QUOTA_FILES=str(FILES),
        LIMNER_UPLOAD_QUOTA_BYTES=str(BYTES),
    )
    yield process
    process.stop()


@pytest.mark.parametrize("rounds", tiers.counts(2, 60))
async def test_ps7_the_quota_is_exact_whatever_races(
    narrow: Api, server: Server, http: aiohttp.ClientSession, make_tenant: MakeTenant, superuser: psycopg.Connection, tally: Tally,
    rounds: int,
) -> None:  # fmt: skip
    tenant = await make_tenant()
    sender = Sender(Client(http, narrow.url, tenant.api_key), server, tenant, superuser)
    made = 0
    for _ in range(rounds):
        many = await asyncio.gather(*(sender.announce(PICTURE) for _ in range(40)))
        taken = [answer.json["id"] for answer in many if answer.status == 201]
        assert len(taken) == FILES
        assert {answer.json["code"] for answer in many if answer.status != 201} == {"quota_exceeded"}
        assert {answer.status for answer in many} == {201, 409}
        assert sender.usage() == (FILES * len(PICTURE), FILES)

        # ready, deleted and rejected, together and with new ones
        for answer in many:
            if answer.status == 201:
                await sender.put(answer.json["upload"], PICTURE)
        await asyncio.gather(
            *(sender.complete(upload_id) for upload_id in taken[:4]),
            *(sender.client.call("DELETE", f"{UPLOADS}/{upload_id}") for upload_id in taken[2:8]),
            *(sender.announce(PICTURE) for _ in range(5)),
        )
        sender.usage()
        page = (await sender.client.call("GET", f"{UPLOADS}?limit=100")).json["uploads"]
        await asyncio.gather(
            *(sender.client.call("DELETE", f"{UPLOADS}/{upload['id']}") for upload in page for _ in range(2))
        )
        assert sender.usage() == (0, 0)
        made += len(taken) + 5
    large = await asyncio.gather(*(sender.announce(b"x" * 9000 + bytes([n])) for n in range(6)))
    assert sorted(answer.status for answer in large) == [201, 201, 409, 409, 409, 409]
    assert sender.usage() == (2 * 9001, 2)
    tally("PS7 quota", uploads=made, off_by=0)
