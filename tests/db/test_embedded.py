"""The embedded server is private: a socket of one's own, passwords for everybody, no TCP; and it survives being killed."""

import os
import pwd
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from limner.db.embedded import SYSTEM_USER, EmbeddedError, EmbeddedPostgres


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="limner-home-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedPostgres]:
    """A server that the tests of this file look at and leave running."""
    path = Path(tempfile.mkdtemp(prefix="limner-home-"))
    server = EmbeddedPostgres(path)
    with server.running():
        yield server
    shutil.rmtree(path, ignore_errors=True)


def _pid(server: EmbeddedPostgres) -> int:
    pid = server.postmaster_pid()
    assert pid is not None
    return pid


def _gone(pid: int) -> bool:
    """Its lock is the last thing a server takes away; the process itself may need a moment more."""
    try:
        psutil.Process(pid).wait(5)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_socket_folder_and_the_data_are_nobody_elses(running: EmbeddedPostgres) -> None:
    runner = pwd.getpwnam(SYSTEM_USER).pw_uid if os.getuid() == 0 else os.getuid()

    assert _mode(running.socket_dir) == 0o700
    assert running.socket_dir.stat().st_uid == runner
    assert _mode(running.data) == 0o700
    assert psutil.Process(_pid(running)).uids().real == runner
    assert all(_mode(path) == 0o700 for path in running.socket_dir.iterdir() if path.is_socket())
    assert len(str(running.socket_dir / ".s.PGSQL.5432")) <= 107


def test_the_superusers_password_is_a_file_only_its_owner_reads(running: EmbeddedPostgres) -> None:
    path = running.home / "superuser.password"

    assert _mode(path) == 0o600
    assert len(path.read_text().strip()) >= 40


def test_the_server_listens_on_no_tcp_port(running: EmbeddedPostgres) -> None:
    process = psutil.Process(_pid(running))

    listening = []
    for one in [process, *process.children()]:
        with suppress(psutil.NoSuchProcess):  # PostgreSQL's own workers come and go
            listening += [c for c in one.net_connections("inet") if c.status == "LISTEN"]

    assert process.is_running()
    assert listening == []
    with psycopg.connect(running.superuser_conninfo()) as conn:
        assert conn.execute("SHOW listen_addresses").fetchone() == ("",)


@pytest.mark.parametrize("password", ["wrong", "", None])
@pytest.mark.parametrize("user", ["postgres", "limner_migrate"])
def test_a_wrong_password_and_none_are_refused(running: EmbeddedPostgres, user: str, password: str | None) -> None:
    facts = conninfo_to_dict(running.superuser_conninfo()) | {"user": user, "password": password}
    facts |= {"passfile": "/dev/null"}

    with pytest.raises(
        psycopg.OperationalError, match=r"password authentication failed|no password supplied|fe_sendauth"
    ):
        psycopg.connect(make_conninfo("", **{k: v for k, v in facts.items() if v is not None}))


def test_passwords_are_kept_as_scram_verifiers(running: EmbeddedPostgres) -> None:
    with psycopg.connect(running.superuser_conninfo()) as conn:
        kept = conn.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()

    assert {name for name, _ in kept} >= {"postgres", "limner_migrate"}
    assert all(password.startswith("SCRAM-SHA-256$") for _, password in kept)


def test_the_migrating_role_is_no_superuser(running: EmbeddedPostgres) -> None:
    with psycopg.connect(running.url) as conn:
        assert conn.execute("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user").fetchone() == (
            False,
            False,
        )


def test_what_is_committed_is_on_disk(running: EmbeddedPostgres) -> None:
    with psycopg.connect(running.superuser_conninfo()) as conn:
        settings = {
            name: conn.execute(f"SHOW {name}").fetchone()
            for name in ("fsync", "synchronous_commit", "full_page_writes")
        }
        checksums = conn.execute("SHOW data_checksums").fetchone()

    assert set(settings.values()) == {("on",)}
    assert checksums == ("on",)


def test_a_second_user_of_the_home_keeps_the_server_and_the_last_one_stops_it(home: Path) -> None:
    first, second = EmbeddedPostgres(home), EmbeddedPostgres(home)

    with second.running():
        with first.running() as url:
            pid = _pid(first)
        assert second.postmaster_pid() == pid
        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)

    assert second.postmaster_pid() is None
    assert _gone(pid)
    with first.running() as url, psycopg.connect(url) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_op5_a_killed_server_starts_again_with_all_that_was_committed(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with server.running() as url:
        with psycopg.connect(url) as conn:
            conn.execute("CREATE SCHEMA t CREATE TABLE kept (n int)")
            conn.commit()
            for number in range(50):
                conn.execute("INSERT INTO t.kept VALUES (%s)", [number])
                conn.commit()
            conn.execute("INSERT INTO t.kept VALUES (-1)")  # never committed
            os.kill(_pid(server), signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                conn.execute("SELECT pg_sleep(10)")

        server.revive()

        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT count(*), min(n), max(n) FROM t.kept").fetchone() == (50, 0, 49)


def test_op5_a_server_killed_between_two_users_starts_for_the_next(home: Path) -> None:
    """Its lock file stays behind and names a process that is no more."""
    server = EmbeddedPostgres(home)
    with server.running():
        os.kill(_pid(server), signal.SIGKILL)
    assert (server.data / "postmaster.pid").exists()

    with EmbeddedPostgres(home).running() as url, psycopg.connect(url) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_half_made_data_folder_is_made_again(home: Path) -> None:
    (home / "pg").mkdir()
    (home / "pg" / "half").write_text("initdb died here")

    with EmbeddedPostgres(home).running() as url, psycopg.connect(url) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_somebody_elses_socket_folder_is_refused(home: Path) -> None:
    """A folder in /tmp that another user made first would let them pose as the server."""
    if os.getuid() != 0:
        pytest.skip("only root can plant a folder of another user")
    server = EmbeddedPostgres(home)
    server.socket_dir.mkdir(mode=0o777)
    os.chown(server.socket_dir, pwd.getpwnam("nobody").pw_uid, -1)
    try:
        with pytest.raises(EmbeddedError, match="belongs to somebody else"), server.running():
            pass
    finally:
        server.socket_dir.rmdir()


def test_a_link_in_the_place_of_the_socket_folder_is_refused(home: Path) -> None:
    server, elsewhere = EmbeddedPostgres(home), home / "elsewhere"
    elsewhere.mkdir()
    server.socket_dir.symlink_to(elsewhere)
    try:
        with pytest.raises(EmbeddedError, match="belongs to somebody else"), server.running():
            pass
    finally:
        server.socket_dir.unlink()


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with server.running():
        pass
    (server.data / "PG_VERSION").write_text("9.6\n")

    with pytest.raises(EmbeddedError, match=r"incompatible|version"), server.running():
        pass
