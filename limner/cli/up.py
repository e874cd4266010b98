"""`limner up`: PostgreSQL, migrations, API and worker with one command; what dies is started again."""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer

from limner.cli import demo_tenant, session
from limner.cli.serve import SUPERVISOR
from limner.db.embedded import EmbeddedError, EmbeddedPostgres
from limner.db.pools import Database
from limner.kit.crypto import RootKey
from limner.settings import Settings

START_TIMEOUT_S = 60.0
TICK_S = 0.2
BACKOFF_S = (0.2, 1.0, 5.0, 15.0)
STABLE_S = 30.0


@dataclass(slots=True)
class Child:
    """A process that must run, and how its last starts went."""

    name: str
    arguments: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    next_start: float = field(default=0.0)

    def tend(self, now: float) -> None:
        """Start the process when it is down and its pause is over."""
        if self.process is not None:
            if self.process.poll() is None:
                if now - self.started_at > STABLE_S:
                    self.failures = 0
                return
            session.err.print(f"limner: {self.name} ended with {self.process.returncode}; starting it again")
            self.process = None
            self.next_start = now + BACKOFF_S[min(self.failures, len(BACKOFF_S) - 1)]
            self.failures += 1
        if now >= self.next_start:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.arguments,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.started_at = now

    def stop(self, patience_s: float) -> None:
        """SIGTERM, then SIGKILL when that is not enough."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def up(
    as_json: bool = typer.Option(False, "--json", help="Print one line of JSON when ready, and nothing else."),
    port: int | None = typer.Option(None, help="Port of the API; 0 picks a free one (LIMNER_PORT)."),
    workers: int = typer.Option(1, min=1, max=64, help="Worker processes."),
) -> None:
    """Start everything, print where to look, keep it running until SIGTERM or Ctrl-C."""
    config = session.settings()
    chosen = config.port if port is None else port
    config = config.model_copy(update={"port": chosen or _free_port(config.host)})
    root = session.root_key(config)
    stopping = _catch_signals()
    with _only_one(config.home), session.postgres(config) as url:
        session.bring_up_to_date(url, root)
        demo = asyncio.run(_prepare(config, url, root))
        children = _children(config, workers)
        try:
            _wait_until_ready(config, children, stopping)
            if not stopping:
                _announce(config, demo, as_json=as_json)
            while not stopping:
                _tend(config, children)
                time.sleep(TICK_S)
        finally:
            for child in reversed(children):
                if child.process is not None and child.process.poll() is None:
                    child.process.terminate()
            for child in reversed(children):
                child.stop(config.shutdown_s)


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """One `limner up` a home. Leaves with an explanation when another one runs."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            session.fail(f"limner is up already on {home} (process {file.read().strip() or 'unknown'}); "
                         "stop it, or set LIMNER_HOME to another folder", code=2)  # fmt: skip
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


async def _prepare(config: Settings, url: str, root: RootKey) -> demo_tenant.DemoTenant:
    db = Database(session.address(config, url), root, ("limner_operator",), size=2)
    await db.open()
    try:
        await demo_tenant.install_catalog(db)
        return await demo_tenant.ensure(db, config.home, session.actor())
    finally:
        await db.close()


def _children(config: Settings, workers: int) -> list[Child]:
    shared = config.home / "metrics"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(mode=0o700)
    logs = config.home / "log"
    logs.mkdir(exist_ok=True, mode=0o700)
    env = os.environ | {
        SUPERVISOR: str(os.getpid()),
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
        "LIMNER_HOME": str(config.home),
        "LIMNER_PORT": str(config.port),
        "LIMNER_HOST": config.host,
    }
    command = [sys.executable, "-m", "limner"]
    children = [Child("api", [*command, "api"], env, logs / "api.log")]
    children += [
        Child(f"worker {n}", [*command, "worker"], env, logs / f"worker-{n}.log") for n in range(1, workers + 1)
    ]
    return children


def _tend(config: Settings, children: list[Child]) -> None:
    if config.embedded:
        server = EmbeddedPostgres(config.home)
        if server.postmaster_pid() is None:
            session.err.print("limner: the database ended; starting it again")
            try:
                server.ensure_started()
            except EmbeddedError as error:
                session.err.print(f"limner: {error}")
                time.sleep(1)
    for child in children:
        child.tend(time.monotonic())


def _wait_until_ready(config: Settings, children: list[Child], stopping: list[int]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not stopping:
        _tend(config, children)
        if _answers(config) and (config.home / "log").exists():
            return
        if time.monotonic() > deadline or any(child.failures > 2 for child in children):
            tail = "\n".join(children[0].log.read_text(errors="replace").splitlines()[-8:])
            session.fail(f"limner did not come up; {children[0].log} ends:\n{tail}")
        time.sleep(0.05)


def _answers(config: Settings) -> bool:
    """Whether /readyz says 200, asked in the plainest HTTP there is."""
    try:
        with socket.create_connection((config.host, config.port), timeout=0.5) as conn:
            conn.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return b" 200 " in conn.recv(64)
    except OSError:
        return False


def _announce(config: Settings, demo: demo_tenant.DemoTenant, *, as_json: bool) -> None:
    facts = {
        "base_url": config.base_url,
        "home": str(config.home),
        "org": demo.org,
        "app": demo.app,
        "api_key": demo.api_key,
        "end_user": demo.end_user,
        "pid": os.getpid(),
    }
    if as_json:
        print(json.dumps(facts), flush=True)
        return
    body = '{"model": "local/canvas", "input": {"prompt": "A quiet harbour at sunset"}}'
    session.out.print(f"""[bold green]limner is up[/] at [bold]{config.base_url}[/]

  API reference   {config.base_url}/docs
  Metrics         {config.base_url}/metrics
  Logs and data   {config.home}

A first request, as the end user [bold]{demo.end_user}[/] of the demo app:

  curl -s {config.base_url}/api/v1/generate \\
    -H 'X-API-Key: {demo.api_key}' -H 'X-User-ID: {demo.end_user}' \\
    -H 'Content-Type: application/json' -d '{body}'

Ctrl-C stops everything it started.""", highlight=False)  # fmt: skip


def _catch_signals() -> list[int]:
    received: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda number, _frame: received.append(number))
    return received


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
