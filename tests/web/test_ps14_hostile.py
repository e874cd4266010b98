"""PS14: no request holds the server. Slow connections and hostile bodies beside normal traffic, over real sockets."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import orjson
import psutil
import pytest

from limner.db.context import DatabaseClock
from limner.db.pools import Database
from limner.media.store import ObjectStore
from limner.media.urls import MediaUrls
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.api.refusing import GENERATE, GOOD
from tests.running import Api, Client
from tests.tally import Tally
from tests.tiers import counts
from tests.web import document, hostile, raw
from tests.web.pictures import png

MIB = 1024 * 1024
LIMITS = {
    "LIMNER_HEAD_WITHIN_S": "2", "LIMNER_BODY_WITHIN_S": "2", "LIMNER_SEND_WITHIN_S": "2", "LIMNER_KEEP_ALIVE_S": "3",
    "LIMNER_MAX_BODIES_BYTES": str(48 * MIB),
}  # fmt: skip
PATIENCE_S = 60.0
NORMAL = 150


@pytest.fixture(scope="module")
def guarded(server: Server) -> Iterator[Api]:
    """An API that loses patience quickly."""
    process = Api(server.home, **LIMITS)
    yield process
    process.stop()


@pytest.fixture
async def unpooled() -> AsyncIterator[aiohttp.ClientSession]:
    """Each request on a connection of its own: a newcomer among the slow ones."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=50, force_close=True)) as session:
        yield session


@dataclass
class Normal:
    """What well-behaved callers are answered meanwhile."""

    client: Client
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)

    async def go_on(self, until: asyncio.Task[list[hostile.End]], at_least: int) -> None:
        """In four lanes, until the attacks are over and so many requests are answered."""

        async def lane() -> None:
            while not until.done() or self.answers.total() < at_least:
                await self.once()
                await asyncio.sleep(0.02)

        await asyncio.gather(*(lane() for _ in range(4)))

    async def once(self) -> None:
        submitted = await self.client.call("POST", GENERATE, GOOD)
        self.answers["submit", submitted.status] += 1
        job = await self.client.call("GET", f"/api/v1/jobs/{(submitted.json or {}).get('job_id')}")
        user = await self.client.call("GET", "/api/v1/users/ann")
        granted = await self.client.call("POST", "/api/v1/users/ann/tokens", {"amount": 1})
        self.answers.update([("job", job.status), ("user", user.status), ("grant", granted.status)])


class Memory:
    """The most that a process was seen to hold, beyond what it held at first, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._first = self._process.memory_info().rss
        self.growth = 0

    async def watch(self) -> None:
        while True:
            self.growth = max(self.growth, self._process.memory_info().rss - self._first)
            await asyncio.sleep(0.02)


@pytest.fixture
async def picture(server: Server) -> str:
    """The signed path of a stored output."""
    key = "outputs/hostile/ranges/1/0.png"
    await ObjectStore(None, server.home).put(key, png(64, 64), "image/png")
    clock = DatabaseClock()
    clock.sync(time.time())
    return MediaUrls(server.root, clock, "", 86_400).sign(key)


@pytest.mark.parametrize(("slow", "bodies", "growth_mib"), counts(pr=(100, 40, 200), long=(1000, 200, 400)))
async def test_ps14_slow_connections_and_hostile_bodies_hold_up_nobody(
    guarded: Api,
    unpooled: aiohttp.ClientSession,
    make_tenant: MakeTenant,
    picture: str,
    tally: Tally,
    slow: int,
    bodies: int,
    growth_mib: int,
) -> None:
    caller, attacker = await make_tenant(credits=100_000), await make_tenant()
    normal = Normal(Client(unpooled, guarded.url, caller.api_key))
    target = hostile.Target(guarded.url, attacker.api_key, picture)
    for _ in range(20):
        await normal.once()
    normal.answers.clear()
    memory = Memory(guarded.popen.pid)
    attacks = hostile.ends(hostile.slow(target, slow), hostile.bodies(target, bodies, seed=14), PATIENCE_S, at_once=20)

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(memory.watch())
        attacking = tasks.create_task(attacks)
        await normal.go_on(attacking, NORMAL)
        watching.cancel()
    ends = attacking.result()

    assert {status for _, status in normal.answers} == {200, 202}, normal.answers
    assert normal.answers.total() >= NORMAL
    assert len(ends) == slow + bodies
    assert not [end for end in ends if not end.refused]
    assert not [end for end in ends if any(500 <= status < 600 for status in end.statuses)]
    assert memory.growth < growth_mib * MIB
    tally("PS14", slow=slow, bodies=bodies, normal=normal.answers.total(), grown_mib=memory.growth // MIB)


LONG_BODY = 8 * MIB


async def held(api: Api, tenant: Tenant, number: int) -> list[asyncio.StreamWriter]:
    """So many requests of one organization that send all of a long body but its end."""
    split = urlsplit(api.url)
    writers = []
    for _ in range(number):
        _, writer = await asyncio.open_connection(split.hostname, split.port)
        head = {"X-API-Key": tenant.api_key, "X-User-ID": "ann", "Content-Type": "application/json"}
        writer.write(raw.request("POST", GENERATE, head | {"Content-Length": str(LONG_BODY)}) + b" " * (LONG_BODY - 1))
        await writer.drain()
        writers.append(writer)
    async with asyncio.timeout(20):
        while unread(split.port or 0):
            await asyncio.sleep(0.01)
    return writers


def unread(port: int) -> int:
    """Bytes between this port's connections and whoever reads them, as Linux counts them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = [queue for _, local, remote, _, queue, *_ in lines if f"{port:04X}" in {local[-4:], remote[-4:]}]
    return sum(int(part, 16) for queue in queues for part in queue.split(":"))


async def test_ps14_long_bodies_of_one_organization_leave_room_for_others_and_small_ones_always_pass(
    server: Server, db: Database, http: aiohttp.ClientSession, make_tenant: MakeTenant
) -> None:
    api = Api(server.home, LIMNER_MAX_BODIES_BYTES=str(4 * LONG_BODY))
    greedy, other = await make_tenant(), await make_tenant()
    long = orjson.dumps(GOOD) + b" " * (LONG_BODY - 200)
    try:
        writers = await held(api, greedy, 2)
        own, others = (Client(http, api.url, tenant.api_key) for tenant in (greedy, other))

        assert (await own.call("POST", GENERATE, GOOD)).status == 202
        refused = await own.call("POST", GENERATE, data=long)
        assert (refused.status, refused.json["code"], refused.headers["retry-after"]) == (429, "too_many_bodies", "2")
        assert refused.json["retry_after"] == 2
        document.check("POST", GENERATE, 429, refused.json)
        assert (await others.call("POST", GENERATE, data=long)).status == 202

        writers += await held(api, other, 2)
        third = await make_tenant()
        full = await Client(http, api.url, third.api_key).call("POST", GENERATE, data=long)
        assert (full.status, full.json["code"], full.headers["retry-after"]) == (503, "unavailable", "2")
        document.check("POST", GENERATE, 503, full.json)

        for writer in writers:
            writer.transport.abort()
        async with asyncio.timeout(10):
            while (await own.call("POST", GENERATE, data=long)).status != 202:
                await asyncio.sleep(0.05)
    finally:
        api.stop()


@pytest.mark.parametrize("values", [b"0,", b'"",', b"{},", b"[[[[]]]],"])
async def test_ps14_a_body_of_a_great_many_values_is_refused_before_it_is_whole_and_so_never_parsed(
    guarded: Api, tenant: Tenant, values: bytes
) -> None:
    """Its end never comes: whoever answers has not waited for anything to parse."""
    head = {"X-API-Key": tenant.api_key, "X-User-ID": "ann", "Content-Type": "application/json"}
    start = b'{"model":"local/canvas","input":{"a":[' + values * 200_000

    reply = await raw.exchange(
        guarded.url, raw.request("POST", GENERATE, head | {"Content-Length": str(LONG_BODY)}) + start
    )

    assert (reply.status, reply.json["details"]) == (400, {"": ["holds more than 20000 values"]})
    document.check("POST", GENERATE, 400, reply.json)


async def test_ps14_a_body_that_takes_too_long_answers_408_and_says_so(guarded: Api, tenant: Tenant) -> None:
    head = {"X-API-Key": tenant.api_key, "X-User-ID": "ann", "Content-Length": "20", "Content-Type": "application/json"}

    paths = (GENERATE, "/api/v1/users/ann/tokens")
    requests = [raw.request("POST", path, head) + b'{"amount"' for path in paths]
    replies = await asyncio.gather(*(raw.exchange(guarded.url, request) for request in requests))

    for path, reply in zip(paths, replies, strict=True):
        assert (reply.status, reply.json["code"]) == (408, "body_too_slow")
        assert reply.headers["connection"] == "close"
        document.check("POST", path, 408, reply.json)
