"""A real PgBouncer in transaction mode before the test's server, configured as `limner db pgbouncer` says."""

import configparser
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from limner.db.embedded import SYSTEM_USER
from limner.db.pools import Address
from tests.conftest import Server
from tests.running import START_S, free_port

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")

REQUIRED = "LIMNER_CI" in os.environ  # read now: the tests' processes start from a clean environment


@dataclass(frozen=True)
class Bouncer:
    """Running. `env` makes a limner process use it."""

    server: Server
    port: int

    @property
    def address(self) -> Address:
        return Address(self.server.url, f"postgresql://127.0.0.1:{self.port}/limner", prepare=False)

    @property
    def env(self) -> dict[str, str]:
        assert self.address.pool_url is not None
        return {"LIMNER_DATABASE_POOL_URL": self.address.pool_url, "LIMNER_DATABASE_PREPARE": "false"}


@contextmanager
def running(server: Server, *, pool_size: int) -> Iterator[Bouncer]:
    """PgBouncer with that many server connections for each role; the test is skipped where there is no PgBouncer.

    It refuses to run as root, and the embedded server's socket is its own user's: there it runs as that user.
    """
    if PROGRAM is None:
        assert not REQUIRED, "pgbouncer must be installed here"
        pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="limner-bouncer-"))
    port = free_port()
    _configure(server, folder, port, pool_size)
    identity: dict[str, Any] = {}
    if os.getuid() == 0:
        account = pwd.getpwnam(SYSTEM_USER)
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
        identity = {"user": account.pw_uid, "group": account.pw_gid}
    log = folder / "pgbouncer.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [PROGRAM, str(folder / "pgbouncer.ini")], stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder,
            **identity,
        )  # fmt: skip
    try:
        _wait(process, port, log)
        yield Bouncer(server, port)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(server: Server, folder: Path, port: int, pool_size: int) -> None:
    """The printed files, with this test's port and pool size."""
    ini = configparser.ConfigParser()
    ini.read_string(_said(server.home, "--ini"))
    mine = {"listen_port": port, "default_pool_size": pool_size, "auth_file": folder / "userlist.txt"}
    ini["pgbouncer"].update({name: str(value) for name, value in mine.items()})
    with (folder / "pgbouncer.ini").open("w") as file:
        ini.write(file)
    (folder / "userlist.txt").write_text(_said(server.home))


@functools.cache
def _said(home: Path, *options: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
    return subprocess.run(
        [sys.executable, "-m", "limner", "db", "pgbouncer", *options],
        env=clean | {"LIMNER_HOME": str(home)}, cwd=home, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
