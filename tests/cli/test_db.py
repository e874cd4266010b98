"""`limner db`: what it changes, what it refuses, and where passwords do not go."""

import subprocess
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from limner.db import migrate, revisions, roles
from tests.cli.conftest import Limner
from tests.conftest import Server


def test_check_and_lint_find_nothing(limner: Limner) -> None:
    assert limner.ok("db", "check")["problems"] == []
    assert limner.ok("db", "lint")["findings"] == []


def test_migrating_again_changes_nothing(limner: Limner) -> None:
    done = limner.ok("db", "migrate")

    assert done["before"] == done["after"]


def test_psql_is_the_migrating_role_and_its_exit_code_is_kept(limner: Limner) -> None:
    assert limner.process("db", "psql", "-Atc", "SELECT current_user").out == "limner_migrate\n"
    assert limner.process("db", "psql", "-c", "SELECT nonsense").code == 1


def test_psqls_arguments_hold_no_password(limner: Limner, server: Server) -> None:
    password = str(conninfo_to_dict(server.url)["password"])

    said = limner.process("db", "psql", "-Atc", r"\! cat /proc/$PPID/cmdline")

    assert "psql" in said.out
    assert password not in said.out


def test_pgbouncers_list_opens_the_database(limner: Limner, server: Server) -> None:
    said = limner("db", "pgbouncer")

    users = dict(line.split(" ") for line in said.out.splitlines())
    assert set(users) == {f'"{role}"' for role in roles.RUNTIME}
    parts = conninfo_to_dict(server.url) | {"user": "limner_api", "password": users['"limner_api"'].strip('"')}
    with psycopg.connect(make_conninfo("", **parts)) as conn:
        assert conn.execute("SELECT current_user").fetchone() == ("limner_api",)
    assert "only PgBouncer" in said.err


def test_pgbouncers_ini_names_the_database_and_no_password(limner: Limner, server: Server) -> None:
    said = limner("db", "pgbouncer", "--ini")

    parts = conninfo_to_dict(server.url)
    assert f"limner = host={parts['host']} dbname=limner\n" in said.out
    assert "pool_mode = transaction\n" in said.out
    assert str(parts["password"]) not in said.out


@pytest.fixture
def foreign(server: Server, superuser: psycopg.Connection) -> str:
    """A database of somebody's own, never migrated."""
    superuser.execute("DROP DATABASE IF EXISTS theirs WITH (FORCE)")
    superuser.execute("CREATE DATABASE theirs OWNER limner_migrate")
    return make_conninfo("", **conninfo_to_dict(server.url) | {"dbname": "theirs"})


def test_somebodys_own_database_is_never_migrated_in_passing(limner: Limner, foreign: str) -> None:
    env = {"LIMNER_DATABASE_URL": foreign}

    said, checked, linted = (
        limner("org", "list", env=env),
        limner("db", "check", env=env),
        limner("db", "lint", env=env),
    )

    assert said.code == checked.code == linted.code == 1
    assert "run limner db migrate" in said.err
    assert "run limner db migrate" in checked.out
    with psycopg.connect(foreign) as conn:
        assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'limner%'").fetchone() == (0,)


def test_migrating_somebodys_own_database_makes_it_usable(limner: Limner, foreign: str) -> None:
    env = {"LIMNER_DATABASE_URL": foreign}

    said = limner("db", "migrate", env=env)

    assert said.code == 0, said.err
    assert "nothing →" in said.out
    assert limner("org", "create", "theirs", env=env).code == 0


def test_another_root_key_is_told_and_not_waited_for(limner: Limner, server: Server, foreign: str) -> None:
    migrate.migrate(foreign, server.root)
    env = {"LIMNER_DATABASE_URL": foreign, "LIMNER_ROOT_KEY": "ab" * 32}

    said = limner("org", "list", env=env)

    assert said.code == 1
    assert "the root key is not the one of the last migration" in said.err


def test_a_database_that_is_away_is_one_line(limner: Limner) -> None:
    said = limner("org", "list", env={"LIMNER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"})

    assert said.code == 1
    assert said.err.startswith("error: the database cannot be reached")
    assert said.err.count("\n") == 1


def test_wrong_settings_are_named(limner: Limner) -> None:
    said = limner("org", "list", env={"LIMNER_PORT": "many"})

    assert said.code == 1
    assert "LIMNER_PORT" in said.err


def test_a_schema_at_head_always_has_its_context_key(server: Server, foreign: str) -> None:
    """A migration that dies before its commit leaves neither: they are one commit."""
    migrate.migrate(foreign, server.root)

    with psycopg.connect(foreign) as conn:
        conn.execute("SET ROLE limner_ctx")
        key = conn.execute("SELECT xmin::text FROM limner_priv.ctx_key").fetchall()
        conn.execute("RESET ROLE")
        revision = conn.execute("SELECT xmin::text FROM limner.alembic_version").fetchall()
    assert len(key) == 1
    assert key == revision


def test_no_command_leaves_the_embedded_server_running(tmp_path: Path) -> None:
    limner = Limner(tmp_path / "home", tmp_path)

    said = limner.process("org", "list", "--json")

    assert said.json == {"organizations": []}, said.err
    pid_file = tmp_path / "home" / "pg" / "postmaster.pid"
    assert not pid_file.exists()
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout == b""


def test_the_revision_read_from_file_names_is_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", str(revisions.VERSIONS.parent))

    assert ScriptDirectory.from_config(config).get_heads() == [revisions.head()]
