"""API and worker processes that may be killed, customers who retry, and what must hold when the dust has settled."""

import asyncio
import base64
import contextlib
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import psycopg
from psycopg.conninfo import make_conninfo

from limner.db.pools import Database
from limner.hub import catalog, jobs
from limner.kit import ids
from limner.kit.money import MC
from tests import acts
from tests.conftest import Server, Tenant
from tests.hub.doubles import png
from tests.running import START_S, Answer, Client, Process, free_port

SMALL = {"LIMNER_DATABASE_POOL_SIZE": "6", "LIMNER_CPU_PROCESSES": "1"}
PICTURE = "data:image/png;base64," + base64.b64encode(png(8)).decode()
READY = "worker.ready"
CRASHED = "run.crashed"
FINAL = {"succeeded", "failed", "cancelled"}


class Bent(Process):
    """limner through bent.py: a wrong clock, or a provider far away."""

    program = (str(Path(__file__).with_name("bent.py")),)


class Cluster:
    """Processes over one database. Ports are kept, so that an API comes back where it was."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.home = server.home
        self.ended = False
        self._all: list[Process] = []

    def worker(
        self, *, slow_s: float = 0, skew_s: float = 0, block_s: float = 0, wait: bool = True, **env: str
    ) -> Process:
        asked = (("SLOW_S", slow_s), ("SKEW_S", skew_s), ("BLOCK_S", block_s))
        bent = {name: str(value) for name, value in asked if value}
        process = (Bent if bent else Process)(self.home, ["worker"], SMALL | bent | env)
        self._all.append(process)
        if wait:
            process.wait_for_output(READY)
        return process

    def api(self, port: int | None = None, *, skew_s: float = 0, wait: bool = True, **env: str) -> "ApiProcess":
        process = ApiProcess(self.home, port or free_port(), skew_s, env)
        self._all.append(process)
        if wait:
            process.wait()
        return process

    def crashes(self) -> list[str]:
        """What the processes said of mistakes of limner's own: whatever died, a run must know what it met."""
        return [line for process in self._all for line in process.output().splitlines() if CRASHED in line]

    def end(self) -> None:
        """Kill whatever still runs: these processes have had their say, also when a test broke off and they are tended still."""
        self.ended = True
        for process in self._all:
            with contextlib.suppress(ProcessLookupError):
                process.send(signal.SIGCONT)
            process.kill()


class Supervised:
    """APIs and workers that are started again when they are gone, as a supervisor would."""

    def __init__(
        self, cluster: Cluster, apis: int, workers: int, slow_s: float = 0, env: Mapping[str, str] | None = None
    ) -> None:
        self._cluster = cluster
        self._slow_s = slow_s
        self._env = dict(env or {})
        self.apis = [self._api(None) for _ in range(apis)]
        self.workers = [self._worker() for _ in range(workers)]
        for api in self.apis:
            api.wait()
        for worker in self.workers:
            worker.wait_for_output(READY)
        self.left_by_themselves: list[str] = []

    @property
    def urls(self) -> list[str]:
        return [api.url for api in self.apis]

    def _api(self, port: int | None) -> "ApiProcess":
        return self._cluster.api(port, wait=False, **self._env)  # type: ignore[arg-type]

    def _worker(self) -> Process:
        return self._cluster.worker(slow_s=self._slow_s, wait=False, **self._env)  # type: ignore[arg-type]

    def kill_api(self, place: int | None = None) -> None:
        place = random.randrange(len(self.apis)) if place is None else place
        self.apis[place].kill()
        self.apis[place] = self._api(self.apis[place].port)

    def kill_worker(self, place: int | None = None) -> None:
        place = random.randrange(len(self.workers)) if place is None else place
        self.workers[place].kill()
        self.workers[place] = self._worker()

    async def tend(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            if self._cluster.ended:
                return
            for place, api in enumerate(self.apis):
                if api.popen.poll() is not None:
                    self._note(api, "api.listening")
                    self.apis[place] = self._api(api.port)
            for place, worker in enumerate(self.workers):
                if worker.popen.poll() is not None:
                    self._note(worker, READY)
                    self.workers[place] = self._worker()

    def _note(self, process: Process, sign: str) -> None:
        """A start that finds no database may give up; a process that worked must not."""
        if sign in process.output():
            self.left_by_themselves.append(process.output()[-3000:])


class ApiProcess(Bent):
    def __init__(self, home: Path, port: int, skew_s: float, env: dict[str, str]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        bent = {"SKEW_S": str(skew_s)} if skew_s else {}
        super().__init__(home, ["api"], SMALL | {"LIMNER_PORT": str(port)} | bent | env)

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                assert self.popen.poll() is None, self.output()
                assert time.monotonic() < deadline, self.output()
                time.sleep(0.02)


@dataclass
class Customers:
    """Clients that send each request until it is answered, with one idempotency key a request."""

    clients: list[Client]  # one an API: whichever answers
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    accepted: dict[str, str] = field(default_factory=dict)
    retries: int = 0
    odd: list[Answer] = field(default_factory=list)

    async def buy_until_stopped(self, name: str, pause_s: float) -> None:
        count = 0
        while not self.stop.is_set():
            await self.buy(f"{name}-{count}")
            count += 1
            await asyncio.sleep(pause_s)

    async def buy(self, key: str) -> None:
        """One job, however often it takes; what was answered stands under its key."""
        body = {"model": "local/describe", "input": {"images": [PICTURE]}}
        answer = await self.persistently("POST", "/api/v1/generate", body, key)
        if answer.status == 202:
            self.accepted[key] = answer.json["job_id"]
        else:
            self.odd.append(answer)

    async def persistently(self, method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
        """Until the answer is neither lost nor a server's error."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            try:
                async with asyncio.timeout(8):
                    answer = await random.choice(self.clients).call(method, path, body, headers=headers)
                if answer.status < 500:
                    return answer
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                pass
            self.retries += 1
            await asyncio.sleep(0.1)

    async def results(self, timeout_s: float) -> dict[str, Any]:
        """Every accepted job by id, once all are closed."""
        found: dict[str, Any] = {}
        deadline = time.monotonic() + timeout_s
        while missing := [job_id for job_id in self.accepted.values() if job_id not in found]:
            assert time.monotonic() < deadline, f"{len(missing)} jobs are still open: {missing[:5]}"
            for job_id in missing:
                answer = await self.persistently("GET", f"/api/v1/jobs/{job_id}")
                assert answer.status == 200, f"job {job_id} was accepted and is lost: {answer.status}"
                if answer.json["status"] in FINAL:
                    found[job_id] = answer.json
            await asyncio.sleep(0.1)
        return found


async def assert_settled(
    db: Database, tenant: Tenant, customers: Customers, found: dict[str, Any], conn: psycopg.Connection
) -> int:
    """Nothing lost, nothing billed twice, every result there, honest books; the number of successes."""
    assert customers.odd == [], [(a.status, a.body) for a in customers.odd[:3]]
    assert len(set(customers.accepted.values())) == len(customers.accepted), "two requests share a job"
    stored = {str(row[0]) for row in conn.execute("SELECT id FROM limner.job WHERE org_id = %s", [tenant.org_id])}
    assert stored == set(customers.accepted.values()), "as many jobs as requests, each acknowledged"
    won = 0
    for job_id, body in found.items():
        succeeded = body["status"] == "succeeded"
        won += succeeded
        assert body["tokens_charged"] == (1 if succeeded else 0), body
        if succeeded:
            assert body["outputs"][0]["text"], body
        else:
            assert body["error"]["code"] in {"runs_exhausted", "provider_crashed"}, body
        kinds = [
            row[0]
            for row in conn.execute(
                "SELECT kind FROM limner.transfer WHERE org_id = %s AND job_id = %s ORDER BY created_at",
                [tenant.org_id, job_id],
            )
        ]
        assert kinds == ["hold", "post" if succeeded else "void"]
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == (wallet_start(tenant) - won * MC, 0)
    assert acts.count(conn, "SELECT count(*) FROM limner.job_queue WHERE org_id = %s", tenant.org_id) == 0
    assert await acts.books(db, tenant.org_id) == {}
    return won


def wallet_start(tenant: Tenant) -> int:
    return tenant.credits * MC


@contextlib.contextmanager
def as_superuser(server: Server) -> Iterator[psycopg.Connection]:
    """A connection that waits until the server takes any: for tests that kill it."""
    conninfo = make_conninfo(server.embedded.superuser_conninfo(), dbname="limner")
    deadline = time.monotonic() + 30
    while True:
        try:
            conn = psycopg.connect(conninfo, autocommit=True)
            break
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.05)
    with conn:
        yield conn


async def eventually(condition: Callable[[], Any], timeout_s: float = 15.0, pause_s: float = 0.02) -> Any:
    """Its first true answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(pause_s)


def leases(conn: psycopg.Connection, org_id: UUID) -> dict[UUID, tuple[int, int]]:
    """Open jobs that somebody holds: (process id of the holder, fence)."""
    rows = conn.execute(
        "SELECT job_id, split_part(lease_owner, ':', 2)::int, fence FROM limner.job_queue"
        " WHERE org_id = %s AND lease_owner IS NOT NULL", [org_id]
    )  # fmt: skip
    return {row[0]: (row[1], row[2]) for row in rows}


async def order(db: Database, tenant: Tenant, **given: Any) -> UUID:
    """A drawing of the platform's, submitted without an API process."""
    wanted = {"prompt": "a hare", "size": 512, "aspect_ratio": "1:1", "style": "gradient", "num_outputs": 1} | given
    return await order_of(db, tenant, "local/canvas", wanted)


async def order_of(db: Database, tenant: Tenant, name: str, wanted: dict[str, Any]) -> UUID:
    """A job of a model of the tenant's or the platform's, submitted without an API process."""
    async with db.tenant_tx(tenant.org_id) as tx:
        model = await catalog.find_model(tx, name)
    assert model is not None
    request = replace(acts.request(tenant), model_id=model.id, model=model.name, kind=model.kind, input=wanted)
    async with db.tenant_single(tenant.org_id) as tx:
        return (await jobs.submit(tx, ids.new(), request)).job_id


def closed(conn: psycopg.Connection, job_ids: Iterable[UUID]) -> bool:
    wanted = list(job_ids)
    query = "SELECT count(*) FROM limner.job WHERE id = ANY(%s) AND finished_at IS NOT NULL"
    return acts.count(conn, query, wanted) == len(wanted)


def charged_once(conn: psycopg.Connection, org_id: UUID, job_ids: Iterable[UUID]) -> None:
    """Each job succeeded and was paid for by one hold and one post."""
    rows = conn.execute(
        "SELECT j.id, j.state, array_agg(x.kind ORDER BY x.created_at), sum(x.amount_mc) FILTER (WHERE x.kind = 'post')"
        " FROM limner.job j JOIN limner.transfer x ON x.org_id = j.org_id AND x.job_id = j.id"
        " WHERE j.org_id = %s AND j.id = ANY(%s) GROUP BY 1, 2", [org_id, list(job_ids)]
    ).fetchall()  # fmt: skip
    assert {row[0] for row in rows} == set(job_ids)
    assert {(row[1], *row[2], int(row[3])) for row in rows} == {("succeeded", "hold", "post", MC)}
