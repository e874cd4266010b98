"""MJ6: every boundary of API and worker between a submit and its end is a point to fail at, and at each nothing is lost.

SQLite's method: fail the first, then the second … until a run passes unharmed. Three things go wrong at a boundary: the
process dies, the line is cut before anything was sent, or cut when all was done and only the answer is missing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub.providers.base import CallClass
from limner.kit.money import MC
from limner.media.store import ObjectStore
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.faults import crash
from tests.faults.cluster import closed, order, wallet_start
from tests.running import Client, free_port

POINTS = 400
"""More than there can be: the enumeration ends by itself."""
ENDS_WITHIN_S = 20.0
TERMINAL = ("job.completed", "job.failed", "job.cancelled")
BODY = {"model": "local/canvas", "input": {"prompt": "a hare"}}
FAULTS = pytest.mark.parametrize(
    "faults", [pytest.param(1, id="one"), pytest.param(3, id="all", marks=pytest.mark.long)]
)


class Stage:
    """Where a run is tried again and again: processes that are forked, hurt, and started anew when they are gone."""

    def __init__(self, server: Server, db: Database, superuser: psycopg.Connection, make: MakeTenant) -> None:
        self.db = db
        self.superuser = superuser
        self.make = make
        self.home = server.home
        self.url = server.url
        self.extra_calls = 0
        self._alive: list[ForkServerProcess] = []

    def begin(
        self, command: crash.Command, *, at: int | str = 0, how: crash.How = "die", port: int = 0,
        call_class: CallClass = CallClass.A,
    ) -> tuple[crash.Plan, ForkServerProcess]:  # fmt: skip
        env = {
            "LIMNER_LEASE_S": "0.8",
            "LIMNER_DATABASE_POOL_SIZE": "4",
            "LIMNER_DATABASE_URL": self.url,
            "LIMNER_PORT": str(port),
        }
        notes = self.home / "log" / f"crash-{uuid4().hex[:12]}"
        plan = crash.Plan(command, self.home, notes, at, how, call_class, tuple(env.items()))
        process = crash.begin(plan)
        self._alive.append(process)
        return plan, process

    @contextmanager
    def running(self, command: crash.Command, **facts: Any) -> Iterator["Kept"]:
        """Started again, unharmed, whenever it is gone."""
        kept = Kept(self, command, facts)
        try:
            yield kept
        finally:
            kept.end()

    async def settled(self, tenant: Tenant, job_id: UUID, call_class: CallClass) -> None:
        """One job, one hold resolved once, one charge, one end, the result there, the books in order."""
        org_id = tenant.org_id
        row = self.superuser.execute(
            "SELECT array_agg(id), array_agg(state), array_agg(outputs -> 0 ->> 'key') FROM limner.job WHERE org_id = %s", [org_id]
        ).fetchone()  # fmt: skip
        assert row is not None
        assert (row[0], row[1]) == ([job_id], ["succeeded"])
        moved = self.superuser.execute(
            "SELECT kind, amount_mc FROM limner.transfer WHERE org_id = %s AND job_id = %s ORDER BY created_at", [org_id, job_id]
        )  # fmt: skip
        assert moved.fetchall() == [("hold", MC), ("post", MC)]
        events = "SELECT count(*) FROM limner.event WHERE org_id = %s AND subject_id = %s AND type = ANY(%s)"
        assert acts.count(self.superuser, events, org_id, job_id, list(TERMINAL)) == 1
        assert acts.count(self.superuser, "SELECT count(*) FROM limner.usage_record WHERE org_id = %s", org_id) == 1
        assert acts.count(self.superuser, "SELECT count(*) FROM limner.job_queue WHERE org_id = %s", org_id) == 0
        wallet = await acts.wallet(self.db, tenant)
        assert (wallet.available_mc, wallet.held_mc) == (wallet_start(tenant) - MC, 0)
        assert await acts.books(self.db, org_id) == {}
        assert await ObjectStore(None, self.home).read(row[2][0]) == crash.PICTURE
        self._count_calls(job_id, call_class)

    def _count_calls(self, job_id: UUID, call_class: CallClass) -> None:
        """One crash costs one call at most, and none where the provider knows the key."""
        lines = [line.split() for line in (self.home / "provider-calls").read_text().splitlines()]
        keys = [key for job, key in lines if job == str(job_id)]
        assert 1 <= len(keys) <= 2
        if call_class is CallClass.A:
            assert len(set(keys)) == 1, "the provider was asked again under another name"
        self.extra_calls += len(keys) - 1

    def end(self) -> None:
        for process in self._alive:
            process.kill()
        for process in self._alive:
            process.join()


class Kept:
    """A process that comes to harm as planned, and its unharmed successors."""

    def __init__(self, stage: Stage, command: crash.Command, facts: dict[str, Any]) -> None:
        self._stage, self._command = stage, command
        self.plan, self._process = stage.begin(command, **facts)
        self._again = False
        self._then = {name: value for name, value in facts.items() if name not in {"at", "how"}}

    def tend(self) -> None:
        if self._process.is_alive():
            return
        log = self.plan.log.read_text()[-3000:]
        assert self.plan.fired.exists(), log
        assert not self._again, "what came after it left too"
        if self.plan.how == "die":
            assert self._process.exitcode == crash.DIED, log
        else:  # a line that is cut makes nobody leave but who is only starting, and that with words
            assert "Database.open" in self.plan.fired.read_text(), log
            assert self._process.exitcode == 1, log
        self._again = True
        _, self._process = self._stage.begin(self._command, **self._then)

    def end(self) -> None:
        self._process.kill()
        self._process.join()


@pytest_asyncio.fixture
async def stage(
    server: Server, db: Database, superuser: psycopg.Connection, make_tenant: MakeTenant
) -> AsyncIterator[Stage]:
    acts.empty_queue(superuser)
    stage = Stage(server, db, superuser, make_tenant)
    yield stage
    stage.end()


Attempt = Callable[[int | str, crash.How, CallClass], Awaitable[crash.Plan]]


async def _enumerate(faults: int, attempt: Attempt) -> Counter[str]:
    """Every point with `faults` of the three faults, until a run passes unharmed; how often each boundary was hurt."""
    hurt: Counter[str] = Counter()
    unharmed: set[str] = set()

    async def at(point: int | str, number: int) -> bool:
        before = hurt.total()
        for turn in range(number, number + faults):
            call_class = (CallClass.A, CallClass.C)[turn // len(crash.HOW) % 2]
            plan = await attempt(point, crash.HOW[turn % len(crash.HOW)], call_class)
            hurt.update([plan.fired.read_text()] if plan.fired.exists() else [])
            if point == number and not plan.fired.exists():
                unharmed.update(plan.trace.read_text().splitlines())
        return hurt.total() > before

    for number in range(1, POINTS):
        if not await at(number, number):
            break
    # two tasks' boundaries do not always come in the same order: one may have had a number that was over already
    for turn in range(3):
        for place, name in enumerate(sorted(unharmed - set(hurt))):
            await at(name, turn + place)
    assert len(unharmed) > 1
    assert unharmed - set(hurt) == set(), "boundaries that were never hurt"
    return hurt


@FAULTS
async def test_mj6_a_worker_that_fails_at_any_boundary_loses_and_doubles_nothing(stage: Stage, faults: int) -> None:
    """With all faults it works for two organizations at once: what they share, they lose together."""

    async def attempt(at: int | str, how: crash.How, call_class: CallClass) -> crash.Plan:
        tenants = [await stage.make() for _ in range(min(faults, 2))]
        job_ids = [await order(stage.db, tenant) for tenant in tenants]
        with stage.running("worker", at=at, how=how, call_class=call_class) as worker:
            await _closed(stage, [worker], *job_ids)
        for tenant, job_id in zip(tenants, job_ids, strict=True):
            await stage.settled(tenant, job_id, call_class)
        return worker.plan

    hurt = await _enumerate(faults, attempt)

    assert {"provider: sent", "provider: received", "store: put"} <= set(hurt)
    # of a statement in which two organizations' writes meet, one verb is named: each is seen, and all of them at each fault
    shared = [
        sum(times for name, times in hurt.items() if f"work_many({verb})" in name)
        for verb in ("start", "intend", "finish")
    ]
    assert min(shared) >= 1, sorted(hurt)
    assert sum(shared) >= 3 * faults, sorted(hurt)
    assert stage.extra_calls > 0, "a call whose answer was lost is asked for again"
    print(f"worker: {hurt.total()} faults at {len(hurt)} kinds of boundary, {stage.extra_calls} calls twice")


@FAULTS
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "alone"])
async def test_mj6_an_api_that_fails_at_any_boundary_takes_each_order_once(
    stage: Stage, http: aiohttp.ClientSession, faults: int, shared: bool
) -> None:
    """`shared`: the order goes into a batch; else it has a commit of its own."""

    async def attempt(at: int | str, how: crash.How, call_class: CallClass) -> crash.Plan:
        tenant = await stage.make()
        if not shared:
            stage.superuser.execute("UPDATE limner.organization SET max_open = 9 WHERE org_id = %s", [tenant.org_id])
        port = free_port()
        with stage.running("api", at=at, how=how, port=port) as api:
            job_id = await _bought(Client(http, f"http://127.0.0.1:{port}", tenant.api_key), api)
            await _closed(stage, [api, worker], job_id)
        await stage.settled(tenant, job_id, CallClass.A)
        return api.plan

    with stage.running("worker") as worker:
        hurt = await _enumerate(faults, attempt)

    assert "customer: answer" in hurt
    assert any("submit" in name for name in hurt)
    print(f"API: {hurt.total()} faults at {len(hurt)} kinds of boundary")


async def _bought(client: Client, api: Kept) -> UUID:
    """The customer sends the same request under the same key until it is answered."""
    key, until = uuid4().hex, time.monotonic() + ENDS_WITHIN_S
    while True:
        assert time.monotonic() < until, api.plan.log.read_text()[-3000:]
        api.tend()
        try:
            answer = await client.call("POST", "/api/v1/generate", BODY, headers={"Idempotency-Key": key})
            if answer.status < 500:
                assert answer.status == 202, answer.body
                return UUID(answer.json["job_id"])
        except (aiohttp.ClientError, ConnectionError):
            pass
        await asyncio.sleep(0.02)


async def _closed(stage: Stage, processes: list[Kept], *job_ids: UUID) -> None:
    until = time.monotonic() + ENDS_WITHIN_S
    while not closed(stage.superuser, job_ids):
        for process in processes:
            process.tend()
        assert time.monotonic() < until, processes[-1].plan.log.read_text()[-3000:]
        await asyncio.sleep(0.01)
