"""The command line through its front door: a process a command, over the test run's real home or one of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from limner.cli import main
from limner.db.embedded import EmbeddedPostgres
from limner.db.pools import Database
from tests.conftest import Server

WITHIN_S = 60.0


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's, without anything of limner's but the home and what is given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LIMNER_", "PROMETHEUS_"))}
    return clean | {"LIMNER_HOME": str(home)} | more


@dataclass(frozen=True)
class Said:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output is one JSON document and nothing else."""
        return json.loads(self.out)


class Limner:
    """`limner(...)` runs a command on one home: in this process, which is quick, or in one of its own."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home = home
        self.folder = folder

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None, typed: str | None = None) -> Said:
        """`typed`: on standard input."""
        with ThreadPoolExecutor(1) as apart:  # a command has its own event loop; the test may be running in one
            result = apart.submit(self._invoke, arguments, environment(self.home, **(env or {})), typed).result(
                WITHIN_S
            )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    def process(self, *arguments: str, env: Mapping[str, str] | None = None) -> Said:
        """The same as an operator's shell does it."""
        done = subprocess.run(
            [sys.executable, "-m", "limner", *arguments], env=environment(self.home, **(env or {})), cwd=self.folder,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=WITHIN_S,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Said(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
        """The JSON document of a command that must succeed."""
        said = self(*arguments, "--json", env=env)
        assert said.code == 0, said.err
        return said.json

    @staticmethod
    def _invoke(arguments: tuple[str, ...], env: dict[str, str], typed: str | None = None) -> Result:
        return CliRunner().invoke(main.app, list(arguments), input=typed, env={**dict.fromkeys(os.environ), **env})


@pytest.fixture
def limner(server: Server, db: Database, tmp_path: Path) -> Limner:
    """Commands over the test run's home, where PostgreSQL is up and the catalog is installed."""
    return Limner(server.home, tmp_path)


class Up:
    """A `limner up --json` and everything it started."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        self.home = home
        self.errors = home.parent / f"{home.name}-up-{time.monotonic_ns()}.err"
        with self.errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "limner", "up", "--json", *arguments],
                env=environment(home, LIMNER_SHUTDOWN_S="10", LIMNER_LEASE_S="1", **env),
                cwd=home.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        """The one line, once it comes."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, self.said()
        facts: dict[str, Any] = json.loads(line)
        return facts

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def child(self, command: str) -> psutil.Process:
        """The process of `limner <command>` that is alive now."""
        for process in psutil.Process(self.popen.pid).children():
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE and command in process.cmdline():
                return process
        raise AssertionError(f"no {command} among the children")

    def worker(self) -> psutil.Process:
        """The worker, once it is at work: it holds the lock of the start no more, for which others would wait if it were stopped."""
        log, worker = self.home / "log" / "worker-1.log", self.child("worker")
        until(lambda: log.exists() and f'"owner":"{socket.gethostname()}:{worker.pid}:' in log.read_text())
        return worker

    def everything(self) -> list[psutil.Process]:
        """All it started: its processes and theirs, and the database's."""
        found = psutil.Process(self.popen.pid).children(recursive=True)
        postmaster = EmbeddedPostgres(self.home).postmaster_pid()
        return found + ([psutil.Process(postmaster)] if postmaster else [])

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(WITHIN_S)


StartUp = Callable[..., Up]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """An empty home; PostgreSQL is made in it by whoever comes first."""
    with tempfile.TemporaryDirectory(prefix="limner-home-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "home"


@pytest.fixture
def start(home: Path) -> Iterator[StartUp]:
    """Starts `limner up` on the module's home; whatever is left of it is gone after the test."""
    running: list[Up] = []

    def begin(*arguments: str, **env: str) -> Up:
        running.append(Up(home, *(arguments or ("--port", "0")), **env))
        return running[-1]

    yield begin
    for up in running:
        up.stop()
        assert up.popen.stdout is not None
        up.popen.stdout.close()


def gone(processes: list[psutil.Process], within_s: float = 20) -> bool:
    """Whether they all end (zombies count as ended: reaping is their parent's matter)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(alive(process) for process in processes):
            return True
        time.sleep(0.05)
    return False


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(happens: Callable[[], bool], within_s: float = 30) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
