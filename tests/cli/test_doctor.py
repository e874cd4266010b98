"""`limner doctor`: sound where it is, exact about what is not, and never at a loss itself."""

import socket
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import acts
from tests.cli.conftest import Limner
from tests.conftest import Server
from tests.running import Process, free_port


@pytest.fixture(autouse=True)
def nobody_waits(superuser: psycopg.Connection) -> None:
    """What other tests left in the queue would be told of, rightly."""
    acts.empty_queue(superuser)


def _checks(limner: Limner, **env: str) -> tuple[int, dict[str, Any]]:
    said = limner("doctor", "--json", env={"LIMNER_PORT": str(free_port())} | env)
    return said.code, {check["name"]: check for check in said.json["checks"]}


def test_a_sound_installation(limner: Limner) -> None:
    code, checks = _checks(limner)

    assert [check for check in checks.values() if not check["ok"]] == []
    assert code == 0
    assert len(checks) == 16


def test_people_read_a_line_a_check(limner: Limner) -> None:
    said = limner("doctor", env={"LIMNER_PORT": "0"})

    assert said.code == 0
    assert said.out.count("✓") == 16
    assert "✗" not in said.out


def test_an_empty_home_is_made_sound(tmp_path: Path) -> None:
    code, checks = _checks(Limner(tmp_path / "home", tmp_path))

    assert code == 0, checks
    assert "brought there just now" in checks["schema"]["found"]


def test_a_key_that_others_can_read(limner: Limner, server: Server) -> None:
    key = server.home / "root.key"
    key.chmod(0o644)
    try:
        code, checks = _checks(limner)
    finally:
        key.chmod(0o600)

    assert code == 1
    assert checks["root key"]["fix"] == f"chmod 600 {key}"


def test_a_home_that_others_can_list(limner: Limner, server: Server) -> None:
    mode = server.home.stat().st_mode & 0o777
    server.home.chmod(0o755)
    try:
        code, checks = _checks(limner)
    finally:
        server.home.chmod(mode)

    assert code == 1
    assert "chmod 700" in checks["home"]["fix"]


def test_wrong_settings_end_the_examination(limner: Limner) -> None:
    said = limner("doctor", "--json", env={"LIMNER_LEASE_S": "-1"})

    assert said.code == 1
    assert [(check["name"], check["ok"]) for check in said.json["checks"]] == [("Python", True), ("settings", False)]
    assert "LIMNER_LEASE_S" in said.json["checks"][1]["found"]


def test_a_port_that_another_program_has(limner: Limner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, checks = _checks(limner, LIMNER_PORT=str(other.getsockname()[1]))

    assert code == 1
    assert "LIMNER_PORT" in checks["port"]["fix"]


def test_a_store_that_cannot_be_written(limner: Limner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    code, checks = _checks(limner, LIMNER_STORE_URL=f"file://{tmp_path}/file/objects")

    assert code == 1
    assert "LIMNER_STORE_URL" in checks["object store"]["fix"]


def test_a_decoder_without_memory(limner: Limner) -> None:
    code, checks = _checks(limner, LIMNER_CPU_MEMORY_BYTES=str(32 * 1024 * 1024))

    assert code == 1
    assert not checks["picture decoder"]["ok"]


def test_a_database_that_is_away(limner: Limner) -> None:
    code, checks = _checks(limner, LIMNER_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")

    assert code == 1
    assert "LIMNER_DATABASE_URL" in checks["database"]["fix"]


def test_a_role_that_is_too_strong(limner: Limner, superuser: psycopg.Connection) -> None:
    superuser.execute("ALTER ROLE limner_worker CREATEDB")
    try:
        code, checks = _checks(limner)
    finally:
        superuser.execute("ALTER ROLE limner_worker NOCREATEDB")

    assert code == 1
    assert "may create databases" in checks["roles"]["found"]


def test_a_worker_is_seen(limner: Limner, worker: Process) -> None:
    _, checks = _checks(limner)

    assert checks["worker"]["ok"]


@pytest.mark.parametrize("text", ["x", "short", "!" * 44])
def test_a_root_key_that_is_none(limner: Limner, text: str) -> None:
    code, checks = _checks(limner, LIMNER_ROOT_KEY=text)

    assert code == 1
    assert not checks["root key"]["ok"]


def test_another_root_key_changes_nothing(limner: Limner) -> None:
    said = limner("doctor", "--json", env={"LIMNER_PORT": "0", "LIMNER_ROOT_KEY": "ab" * 32})

    checks = {check["name"]: check for check in said.json["checks"]}
    assert said.code == 1
    assert "limner db migrate" in checks["schema"]["fix"]
    assert limner("org", "list").code == 0  # the right key still opens it
