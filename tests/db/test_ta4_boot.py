"""TA4: the process refuses to run with powers it must not have. Each bad configuration, planted and rolled back."""

from collections.abc import Iterator

import psycopg
import pytest

from limner.db import lint, roles
from limner.db.pools import Database, runtime_conninfo
from tests.conftest import Server

BAD = {
    "a superuser": ("ALTER ROLE limner_api SUPERUSER", "is a superuser"),
    "row security bypassed": ("ALTER ROLE limner_api BYPASSRLS", "may bypass row level security"),
    "may create roles": ("ALTER ROLE limner_api CREATEROLE", "may create roles"),
    "may create databases": ("ALTER ROLE limner_api CREATEDB", "may create databases"),
    "may replicate": ("ALTER ROLE limner_api REPLICATION", "may replicate"),
    "a member of another role": ("GRANT limner_worker TO limner_api", "is a member of another role"),
    "a member of a predefined role": ("GRANT pg_read_all_data TO limner_api", "is a member of another role"),
    "owns a table": ("ALTER TABLE limner.job OWNER TO limner_api", "owns a table"),
    "owns the schema": ("ALTER SCHEMA limner OWNER TO limner_api", "owns a schema"),
    "row security off": ("ALTER TABLE limner.transfer DISABLE ROW LEVEL SECURITY", "row level security switched off"),
    "row security not forced": (
        "ALTER TABLE limner.job NO FORCE ROW LEVEL SECURITY",
        "row level security switched off",
    ),
    "the schema is behind": ("UPDATE limner.alembic_version SET version_num = '0000'", "limner db migrate"),
    "no schema": ("DELETE FROM limner.alembic_version", "limner db migrate"),
}


@pytest.fixture
def rehearsal(superuser: psycopg.Connection, db: Database) -> Iterator[psycopg.Connection]:
    """A superuser's transaction that never commits; `db` makes sure that the schema is there."""
    superuser.execute("BEGIN")
    yield superuser
    superuser.execute("ROLLBACK")


@pytest.mark.parametrize("name", BAD)
def test_ta4_a_bad_configuration_is_refused(rehearsal: psycopg.Connection, name: str) -> None:
    plant, words = BAD[name]
    rehearsal.execute(plant)
    rehearsal.execute("SET SESSION AUTHORIZATION limner_api")

    problems = lint.boot_problems(rehearsal)

    assert any(words in problem for problem in problems), problems


def test_ta4_a_server_below_the_floor_is_refused(rehearsal: psycopg.Connection) -> None:
    rehearsal.execute("SET SESSION AUTHORIZATION limner_api")

    problems = lint.boot_problems(rehearsal, floor=990000)

    assert any("upgrade the server" in problem for problem in problems)


@pytest.mark.parametrize("role", roles.RUNTIME)
def test_ta4_each_runtime_role_as_migrated_is_accepted(server: Server, db: Database, role: str) -> None:
    with psycopg.connect(runtime_conninfo(server.url, role, server.root)) as conn:
        assert lint.boot_problems(conn) == []


def test_ta4_the_migrating_role_and_the_superuser_are_refused(
    server: Server, superuser: psycopg.Connection, db: Database
) -> None:
    with psycopg.connect(server.url) as conn:
        assert any("may create roles" in p for p in lint.boot_problems(conn))
    assert any("superuser" in p for p in lint.boot_problems(superuser))
