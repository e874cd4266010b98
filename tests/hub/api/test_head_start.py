"""A provider's request is built while the hold is being written: it leaves afterwards, or never."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub.head_start import HeadStart
from limner.hub.providers.base import Leave, ProviderError
from tests.alone import superuser_conninfo
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators.openai_server import OpenAIServer
from tests.faults.cluster import eventually
from tests.hub.api.test_openai_chat import HELLO, MODEL, ask, books, calm, far, house, sell, shop
from tests.running import Api

__all__ = ["calm", "far", "house", "shop"]

WANTED = {"model": MODEL, "messages": HELLO}
both = pytest.mark.parametrize("stream", [False, True])
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'limner_api' AND wait_event_type = 'Lock'"


@both
async def test_mj9_a_provider_hears_nothing_while_the_hold_is_not_written(
    house: Api, server: Server, shop: Tenant, far: OpenAIServer, superuser: psycopg.Connection, stream: bool
) -> None:
    wanted = WANTED | {"stream": stream}
    await ask(house, shop, wanted)
    await eventually(lambda: [state for state, _ in books(superuser, shop)] == ["succeeded"])
    before = len(far.asked)
    with psycopg.connect(superuser_conninfo(server)) as holder:
        holder.execute("SELECT 1 FROM limner.wallet WHERE org_id = %s FOR UPDATE", [shop.org_id])
        answer = asyncio.create_task(ask(house, shop, wanted))
        await eventually(lambda: superuser.execute(WAITING).fetchone() == (1,))
        await asyncio.sleep(0.2)
        assert (len(far.asked), answer.done()) == (before, False)
        holder.rollback()

    assert (await answer)[0] == 200
    assert len(far.asked) == before + 1


@both
async def test_mj9_who_cannot_pay_is_refused_before_anybody_hears(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection, stream: bool
) -> None:
    tenant = await make_tenant(credits=0)
    await sell(db, tenant, ("far", far.url))
    before = len(far.asked)
    answers = [await ask(house, tenant, WANTED | {"stream": stream}) for _ in range(5)]
    assert {(status, body["error"]["code"]) for status, body, _ in answers} == {(402, "insufficient_quota")}
    assert (len(far.asked), books(superuser, tenant)) == (before, [])


@both
async def test_mj9_a_call_that_comes_again_is_asked_once(
    house: Api, shop: Tenant, far: OpenAIServer, stream: bool
) -> None:
    before = len(far.asked)
    answers = [await ask(house, shop, WANTED | {"stream": stream}, {"Idempotency-Key": "k"}) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200] * 3
    assert len(far.asked) == before + 1


@both
async def test_a_request_that_cannot_be_built_is_a_failure_of_its_provider(
    house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer, superuser: psycopg.Connection, stream: bool
) -> None:
    tenant = await make_tenant(credits=100)
    await sell(db, tenant, ("far", far.url))
    superuser.execute("""UPDATE limner.provider SET config = '{"no such": 1}' WHERE org_id = %s""", [tenant.org_id])
    before = len(far.asked)
    status, body, _ = await ask(house, tenant, WANTED | {"stream": stream})
    assert (status, body["error"]["code"]) == (502, "provider_misconfigured")
    assert (len(far.asked), books(superuser, tenant)) == (before, [("failed", 0)])


class Slow:
    """Builds its request, and sends it with leave; or cannot."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.sent = 0
        self.ended = 0

    async def whole(self, _route: Any, _asked: Any, _model: Any, _job: UUID, leave: Leave = None) -> bytes:
        if self.broken:
            raise ProviderError("provider_misconfigured", "no", "fatal")
        if leave is not None:
            await leave
        self.sent += 1
        return b"{}"

    @asynccontextmanager
    async def stream(
        self, route: Any, asked: Any, model: Any, job: UUID, leave: Leave = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        said = await self.whole(route, asked, model, job, leave)

        async def pieces() -> AsyncIterator[bytes]:
            yield said

        try:
            yield pieces()
        finally:
            self.ended += 1


def candidate() -> Any:
    return SimpleNamespace(route=SimpleNamespace(adapter="slow"))


def start(provider: Slow, *, stream: bool) -> HeadStart:
    providers: Any = {"slow": provider}
    asked: Any = SimpleNamespace(stream=stream)
    model: Any = None
    return HeadStart(providers, asked, model, UUID(int=1))


async def answer_of(ahead: HeadStart, one: Any, *, stream: bool) -> bytes:
    if not stream:
        return await ahead.whole(one)
    async with ahead.stream(one) as pieces:
        return b"".join([piece async for piece in pieces])


@both
async def test_what_was_begun_for_another_is_dropped(stream: bool) -> None:
    before, slow, first, second = asyncio.all_tasks(), Slow(), candidate(), candidate()
    ahead = start(slow, stream=stream)
    ahead.begin(first)
    ahead.begin(first)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks() - before) == 1
    ahead.begin(second)
    await asyncio.sleep(0.01)
    assert (slow.sent, len(asyncio.all_tasks() - before)) == (0, 1)
    assert (await answer_of(ahead, first, stream=stream), slow.sent) == (b"{}", 1)
    await asyncio.sleep(0.01)
    assert (slow.sent, slow.ended, asyncio.all_tasks()) == (1, int(stream), before)


@both
async def test_what_may_go_is_sent_before_anything_else_is_done(stream: bool) -> None:
    before, slow, one = asyncio.all_tasks(), Slow(), candidate()
    ahead = start(slow, stream=stream)
    await ahead.go()
    ahead.begin(one)
    await asyncio.sleep(0)
    await ahead.go()
    assert slow.sent == 1
    assert (await answer_of(ahead, one, stream=stream), slow.sent) == (b"{}", 1)
    assert (slow.ended, asyncio.all_tasks()) == (int(stream), before)


async def test_a_stream_that_nobody_reads_is_left() -> None:
    before, slow, one = asyncio.all_tasks(), Slow(), candidate()
    ahead = start(slow, stream=True)
    ahead.begin(one)
    with pytest.raises(ZeroDivisionError):
        async with ahead.stream(one):
            raise ZeroDivisionError
    ahead.begin(one)
    ahead.drop()
    await asyncio.sleep(0.01)
    assert (slow.sent, slow.ended, asyncio.all_tasks()) == (1, 1, before)


@both
async def test_what_cannot_be_built_is_told_to_who_asks_and_to_nobody_else(stream: bool) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, facts: told.append(facts))
    try:
        ahead, one = start(Slow(broken=True), stream=stream), candidate()
        ahead.begin(one)
        await asyncio.sleep(0.01)
        ahead.drop()
        ahead.begin(one)
        await asyncio.sleep(0.01)
        with pytest.raises(ProviderError, match="no"):
            await answer_of(ahead, one, stream=stream)
        gc.collect()
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert told == []
