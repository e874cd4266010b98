"""What every bench stands on: a database of its own, funded tenants, pinned processes, a light load generator.

Absolute numbers drift between machines: each bench prints the ratio to pgbench (or a peer) of the same run.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from limner.cli import demo_tenant
from limner.db import migrate
from limner.db.embedded import EmbeddedPostgres
from limner.db.pools import Address, Database
from limner.kit import ids
from limner.kit.crypto import RootKey
from limner.ledger import wallets
from limner.settings import Settings, load_root_key
from limner.tenancy import api_keys, apps, organizations
from tests.running import Api, Process, start_worker

OPERATOR_ROLES = ("limner_operator", "limner_api", "limner_dispatch", "limner_worker", "limner_audit")
PLENTY_MC = 10**12


@dataclass(frozen=True)
class BenchApp:
    """One app with its key and the ids of its funded end users."""

    org_id: UUID
    app_id: UUID
    key: str
    users: list[str]


@dataclass(frozen=True)
class Rig:
    """A fresh home with a running, migrated, seeded database."""

    home: Path
    settings: Settings
    root: RootKey
    url: str
    embedded: EmbeddedPostgres

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        db = Database(Address(self.url), self.root, OPERATOR_ROLES, size=8)
        await db.open()
        try:
            yield db
        finally:
            await db.close()

    async def tenants(self, db: Database, orgs: int, apps_each: int, users_each: int) -> list[BenchApp]:
        """Organizations with apps whose end users can pay for everything."""
        made = []
        for o in range(orgs):
            org_id = ids.new()
            async with db.tenant_tx(org_id, "limner_operator") as tx:
                await organizations.create(tx, f"bench-{o}-{org_id.hex[-6:]}", f"Bench {o}", actor="bench")
                for a in range(apps_each):
                    app = await apps.create(tx, f"app-{a}", f"App {a}", actor="bench")
                    _, key = await api_keys.create(tx, app, actor="bench", scopes=api_keys.SCOPES)
                    users = [f"user-{u}" for u in range(users_each)]
                    for user in users:
                        await wallets.grant(tx, app.id, user, PLENTY_MC, "bench", ref=None, request_hash=None)
                    made.append(BenchApp(org_id, app.id, key, users))
        return made

    def api(self, core: int | None = 0, **env: str) -> Api:
        """`limner api` on one core."""
        process = Api(self.home, LIMNER_KEY_CACHE_S="60", **env)
        pin(process.popen.pid, core)
        return process

    def worker(self, core: int | None = None, **env: str) -> Process:
        process = start_worker(self.home, **{"LIMNER_LEASE_S": "30", **env})
        pin(process.popen.pid, core)
        return process


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """A home that is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="limner-bench-"))
    settings = Settings(home=home, _env_file=None)  # type: ignore[call-arg]
    embedded = EmbeddedPostgres(home)
    try:
        with embedded.running() as url:
            root = load_root_key(settings)
            migrate.migrate(url, root)

            async def seed() -> None:
                db = Database(Address(url), root, ("limner_operator",), size=2)
                await db.open()
                await demo_tenant.install_catalog(db)
                await db.close()

            asyncio.run(seed())
            yield Rig(home, settings, root, url, embedded)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def superuser(bench: Rig) -> psycopg.Connection:
    """The database as its superuser, for planting."""
    return psycopg.connect(
        bench.embedded.superuser_conninfo().replace("dbname=postgres", "dbname=limner"), autocommit=True
    )


def pin(pid: int, core: int | None) -> None:
    """Keep every thread of a process on one core; without effect on a machine of one."""
    if core is None or (os.cpu_count() or 1) < 2:
        return
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def pin_others(embedded: EmbeddedPostgres, core: int) -> None:
    """Keep the database's processes and this load generator on one core, so that the API has the other to itself."""
    postmaster = embedded.postmaster_pid()
    assert postmaster is not None
    for process in (psutil.Process(postmaster), *psutil.Process(postmaster).children()):
        pin(process.pid, core)
    pin(os.getpid(), core)


def quantile_ms(seconds: list[float], share: float) -> float:
    """The `share` quantile in milliseconds."""
    if len(seconds) < 2:
        return round(seconds[0] * 1000, 3) if seconds else 0.0
    return round(statistics.quantiles(seconds, n=1000, method="inclusive")[int(share * 1000) - 1] * 1000, 3)


def report(name: str, rows: list[tuple[str, str]], facts: dict[str, Any]) -> None:
    """A table for people, then one JSON object as the last line."""
    table = Table(title=f"bench {name}", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, figure in rows:
        table.add_row(what, figure)
    Console().print(table)
    print(json.dumps({"bench": name} | facts))


class Load(asyncio.Protocol):
    """One keep-alive connection that sends prepared requests back to back and times each answer."""

    def __init__(self, requests: Iterator[bytes], until: float, done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._until = until
        self._done = done
        self._buffer = b""
        self._sent_at = 0.0
        self.seconds: list[float] = []
        self.statuses: dict[int, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, rest = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        at = head.lower().find(b"content-length:")
        if at < 0 and b"transfer-encoding: chunked" in head.lower():
            if not rest.endswith(b"0\r\n\r\n"):
                return
            length = len(rest)
        else:
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        now = time.perf_counter()
        self.seconds.append(now - self._sent_at)
        status = int(head[9:12])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self._buffer = rest[length:]
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self._done.done():
            self._done.set_result(None)


def post(url: str, path: str, key: str, user: str, body: bytes) -> bytes:
    """A prepared request."""
    host = url.removeprefix("http://")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\nX-User-ID: {user}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def hammer(
    url: str, requests: Iterator[bytes], clients: int, seconds: float
) -> tuple[list[float], dict[int, int], float]:
    """(latencies, answers by status, answers per second) of `clients` connections for so long."""
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + seconds
    started = time.perf_counter()
    protocols, ends = [], []
    for _ in range(clients):
        done: asyncio.Future[None] = loop.create_future()
        _, protocol = await loop.create_connection(lambda d=done: Load(requests, until, d), host, int(port))  # type: ignore[misc]
        protocols.append(protocol)
        ends.append(done)
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*ends)
    took = time.perf_counter() - started
    latencies = [s for p in protocols for s in p.seconds]
    statuses: dict[int, int] = {}
    for p in protocols:
        for status, count in p.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    return latencies, statuses, len(latencies) / took


def pgbench(embedded: EmbeddedPostgres, conninfo: dict[str, str], script: str, clients: int, seconds: int) -> float:
    """Transactions a second of a script, by prepared statements; its variable `k` is the clock's milliseconds."""
    path = embedded.home / "bench.sql"
    path.write_text(script)
    result = subprocess.run(
        [str(embedded.pgbench()), "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds), "-f", str(path),
         "-D", f"k={time.time_ns() // 1_000_000}",
         "-h", conninfo["host"], "-U", conninfo["user"], conninfo["dbname"]],
        env=os.environ | {"PGPASSWORD": conninfo["password"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in result.stdout.splitlines():
        if line.startswith("tps ="):
            return float(line.split()[2])
    sys.exit(f"pgbench failed:\n{result.stderr[-2000:]}")


def cpu_seconds(process: Process) -> float:
    """Processor time the process has used, user and system."""
    times = psutil.Process(process.popen.pid).cpu_times()
    return float(times.user + times.system)


def resident_mb(process: Process) -> int:
    return round(psutil.Process(process.popen.pid).memory_info().rss / 2**20)


def stop(process: Process) -> None:
    if process.popen.poll() is None:
        process.send(signal.SIGTERM)
        process.stop()
