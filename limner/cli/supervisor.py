"""What `limner up` and `limner demo` run: PostgreSQL, the API and workers; what dies is started again."""

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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from limner.cli import demo_tenant, listening, printing, session
from limner.db.embedded import EmbeddedError, EmbeddedPostgres
from limner.db.pools import Database
from limner.egress import probe
from limner.kit.crypto import RootKey
from limner.settings import Settings

START_TIMEOUT_S = 60.0
RECEIVER_PORT = 8010
BACKOFF_S = (0.2, 1.0, 5.0, 15.0)
STABLE_S = 30.0
KILL_AFTER_S = 5.0  # beyond the shutdown time the processes give themselves
MAX_LOG_BYTES = 20 * 1024 * 1024
PORT_PATIENCE_S = 5.0


class Stopped(Exception):
    """A signal asked to stop before everything had started."""


class StopRequest:
    """Counts SIGTERM, SIGINT and SIGHUP: one asks to stop in good order, another to stop at once."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        """Take over the signals; a SIGHUP that is ignored (nohup) stays ignored."""
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._note)

    def check(self) -> None:
        """Raises Stopped once a signal came."""
        if self.count:
            raise Stopped

    def _note(self, _signum: int, _frame: Any) -> None:
        self.count += 1


@dataclass(frozen=True, slots=True)
class Facts:
    """How to reach an instance that is up, as `home`/up.json (0600) keeps it. `local_url` works on this machine.

    `org` to `end_user` are the demo organization's; None in production, which has none. `receiver`: an origin of this machine
    that webhooks may be sent to, for `limner demo` and `limner webhooks listen`; None in production.
    """

    base_url: str
    home: str
    org: str | None
    app: str | None
    api_key: str | None
    end_user: str | None
    pid: int
    local_url: str
    receiver: str | None = None


@dataclass(slots=True)
class Child:
    """A process that must run, and how its last starts went."""

    name: str
    arguments: list[str]
    env: dict[str, str]
    log: Path
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    next_start: float = field(default=0.0)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tend(self, now: float) -> None:
        """Start the process when it is down and its pause is over; the pauses grow while it does not last."""
        if self.alive:
            if now - self.started_at > STABLE_S:
                self.failures = 0
            return
        if self.process is not None:
            pause = BACKOFF_S[min(self.failures, len(BACKOFF_S) - 1)]
            printing.note(
                f"limner: {self.name} ended with {self.process.returncode}; starting it again (log: {self.log})"
            )
            self.process = None
            self.next_start = now + pause
            self.failures += 1
        if now >= self.next_start:
            _rotate(self.log)
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.arguments, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, pass_fds=self.pass_fds,
                )  # fmt: skip
            self.started_at = now

    def send(self, signum: signal.Signals) -> None:
        if self.process is not None and self.alive:
            self.process.send_signal(signum)

    def log_tail(self) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
        except OSError:
            return "(no log)"


class Instance:
    """Everything of one `limner up`. Made by `started`; tend it a few times a second."""

    def __init__(
        self, config: Settings, listener: socket.socket, workers: int, stop: StopRequest, facts: Facts
    ) -> None:
        self.facts = facts
        self._config = config
        self._stop = stop
        self._server = EmbeddedPostgres(config.home) if config.embedded else None
        self._listener = listener
        self._children = _children(config, listener, workers, facts.receiver)

    def wait_until_ready(self) -> None:
        """Start the processes and return once the API serves. Raises Stopped; leaves when they do not come up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._stop.check()
            self.tend()
            if all(child.alive for child in self._children):
                # only our own API can accept on our own socket: whoever answers there is it
                health = probe.health(self.facts.local_url)
                if health is not None and health["database"]:
                    return
            broken = next((child for child in self._children if child.failures > 2), None)
            if broken is not None or time.monotonic() > deadline:
                child = broken or self._children[0]
                printing.fail(f"limner did not come up; {child.log} ends:\n{child.log_tail()}")
            time.sleep(0.05)

    def tend(self) -> None:
        """Start again what died: PostgreSQL first, then the processes over it."""
        if self._server is not None and self._server.hurry():
            printing.note(
                "limner: somebody told the database to stop; its sessions are ended, so that it can start again"
            )
        if self._server is not None and self._server.postmaster_pid() is None:
            printing.note(f"limner: the database ended; starting it again (log: {self._server.log})")
            try:
                self._server.revive()
            except EmbeddedError as error:  # for instance while the dead server's last processes go: next time
                printing.note(f"limner: {str(error).splitlines()[0]}")
        for child in self._children:
            child.tend(time.monotonic())

    def stop(self) -> None:
        """SIGTERM to all, and SIGKILL to who is left when the patience ends or a second signal comes."""
        self._listener.close()  # the API has its own copy and closes it when it stops taking requests
        for child in self._children:
            child.send(signal.SIGTERM)
        signals = self._stop.count
        deadline = time.monotonic() + self._config.shutdown_s + KILL_AFTER_S
        while any(child.alive for child in self._children):
            if time.monotonic() > deadline or self._stop.count > max(signals, 1):
                for child in self._children:
                    child.send(signal.SIGKILL)
            time.sleep(0.02)


@contextlib.contextmanager
def started(config: Settings, workers: int, stop: StopRequest) -> Iterator[Instance]:
    """Everything running and ready; stopped at the end of the block, however that comes.

    Raises Stopped; leaves with exit code 2 when another process runs this home or the port is taken.
    """
    root = session.root_key(config)
    with _only_one(config.home), _listener(config, stop) as listener, session.postgres(config) as url:
        config = config.model_copy(update={"port": listener.getsockname()[1]})
        stop.check()
        session.bring_up_to_date(config, url, root)
        stop.check()
        tenant = asyncio.run(_prepare(config, url, root))
        receiver = None if config.env == "production" else f"http://127.0.0.1:{listening.free_port(RECEIVER_PORT)}"
        facts = Facts(
            base_url=config.base_url, home=str(config.home), pid=os.getpid(),
            local_url=listening.local_url(config.host, config.port), receiver=receiver,
            **(asdict(tenant) if tenant else dict.fromkeys(("org", "app", "api_key", "end_user"))),
        )  # fmt: skip
        instance = Instance(config, listener, workers, stop, facts)
        try:
            instance.wait_until_ready()
            with _published(config.home, facts):
                yield instance
        finally:
            instance.stop()


def find_running(home: Path, stop: StopRequest) -> Facts | None:
    """The instance that is up on this home, waiting for it while it starts; None when there is none.

    Raises Stopped.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while _is_locked(home):
        stop.check()
        with contextlib.suppress(OSError, ValueError, TypeError):
            facts = Facts(**json.loads((home / "up.json").read_text()))
            if str(facts.pid) == (home / "up.lock").read_text().strip():  # else a killed predecessor's
                return facts
        if time.monotonic() > deadline:
            printing.fail(f"limner is starting on {home} and does not get ready")
        time.sleep(0.1)
    return None


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """One instance a home. Leaves with an explanation when another one runs."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (home / "up.lock").open("a+")
    except OSError as error:
        printing.fail(f"LIMNER_HOME ({home}) cannot be used: {error.strerror or error}")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            printing.fail(f"limner is up already on {home} (process {file.read().strip() or 'unknown'}); "
                          "stop it, or set LIMNER_HOME to another folder", code=2)  # fmt: skip
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _is_locked(home: Path) -> bool:
    try:
        with (home / "up.lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _listener(config: Settings, stop: StopRequest) -> socket.socket:
    """The port; a predecessor that was killed leaves processes which give it back within a second."""
    deadline = time.monotonic() + PORT_PATIENCE_S
    while (config.home / "up.json").exists() and time.monotonic() < deadline:
        stop.check()
        try:
            return listening.try_listen(config.host, config.port)
        except OSError:
            time.sleep(0.1)
    return listening.listen(config.host, config.port)


@contextlib.contextmanager
def _published(home: Path, facts: Facts) -> Iterator[None]:
    path, fresh = home / "up.json", home / "up.json.new"
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(facts), file)
    fresh.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def _prepare(config: Settings, url: str, root: RootKey) -> demo_tenant.DemoTenant | None:
    """The catalog, and the demo organization, which a production installation does not get: its key may do all."""
    db = Database(session.address(config, url), root, session.OPERATOR, size=2)
    try:
        await db.open()
        await demo_tenant.install_catalog(db)
        if config.env == "production":
            return None
        return await demo_tenant.ensure(db, config.home, session.actor())
    finally:
        await db.close()


def _children(config: Settings, listener: socket.socket, workers: int, receiver: str | None) -> list[Child]:
    shared = config.home / "metrics"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(mode=0o700, exist_ok=True)
    logs = config.home / "log"
    logs.mkdir(exist_ok=True, mode=0o700)
    env = os.environ | {
        listening.SUPERVISOR: str(os.getpid()),
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
        "LIMNER_HOME": str(config.home),
        "LIMNER_PORT": str(config.port),
        "LIMNER_HOST": config.host,
    }
    if receiver is not None:
        env["LIMNER_EGRESS_ALLOW_ORIGINS"] = ",".join([*config.egress_allow_origins, receiver])
    command = [sys.executable, "-m", "limner"]
    fd = listener.fileno()
    children = [Child("api", [*command, "api"], env | {listening.FD: str(fd)}, logs / "api.log", (fd,))]
    children += [
        Child(f"worker {n}", [*command, "worker"], env, logs / f"worker-{n}.log") for n in range(1, workers + 1)
    ]
    return children


def _rotate(log: Path) -> None:
    """One old log is kept: a process that dies in circles must not fill the disk."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
