"""Bring a database to this release's schema: roles, context key, migrations. Safe to run again, and twice at once."""

import time
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from limner.db import context, revisions, roles
from limner.kit import crypto

HERE = Path(__file__).parent
ADVISORY_LOCK = 0x6C696D6E65720001  # "limner", migrations
LOCK_TRIES = 5


class MigrationError(Exception):
    """The database could not be brought to this release's schema; the message says why."""


def migrate(url: str, root: crypto.RootKey) -> tuple[str | None, str]:
    """Roles, passwords, context key, schema; the revisions before and after.

    Raises MigrationError: the server is too old, the role may not create roles, or a lock stayed taken.
    """
    try:
        with psycopg.connect(url, connect_timeout=10) as conn:
            if conn.info.server_version < revisions.FLOOR_VERSION:
                raise MigrationError(f"PostgreSQL 15 or newer is needed, this is {conn.info.server_version}")
            conn.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
            roles.ensure(conn, root)
            _prepare_schema(conn)
            before = revisions.current(conn)
        for attempt in range(LOCK_TRIES):
            try:
                _upgrade(url, root)
                break
            except psycopg.errors.LockNotAvailable:
                if attempt == LOCK_TRIES - 1:
                    raise
                time.sleep(0.5 * 2**attempt)
        with psycopg.connect(url, connect_timeout=10) as conn:
            after = revisions.current(conn)
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(f"the migrating role needs CREATEROLE and CREATE on the database: {error}") from error
    except (psycopg.Error, CommandError) as error:  # Alembic's own: the database is ahead of this release
        raise MigrationError(str(error).strip()) from error
    assert after is not None
    return before, after


def _prepare_schema(conn: psycopg.Connection) -> None:
    conn.execute("CREATE SCHEMA IF NOT EXISTS limner AUTHORIZATION limner_owner")
    conn.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    # a temporary type or function would outlive its transaction and wait on the pooled connection for the next tenant
    database = sql.Identifier(conn.info.dbname)
    conn.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(database))
    conn.execute("GRANT USAGE ON SCHEMA limner TO " + ", ".join(roles.RUNTIME))
    # Alembic's own table: the migrating role writes it, processes read it at boot
    conn.execute("SET ROLE limner_owner")
    conn.execute("GRANT USAGE, CREATE ON SCHEMA limner TO SESSION_USER")
    conn.execute("RESET ROLE")


def _upgrade(url: str, root: crypto.RootKey) -> None:
    engine = create_engine(
        "postgresql+psycopg://", poolclass=NullPool, creator=lambda: psycopg.connect(url, connect_timeout=10)
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        raw = connection.connection.driver_connection
        assert raw is not None
        _store_context_key(raw, root)  # in the migrations' own commit: no schema is ever at head without its key
        raw.execute("SET ROLE limner_owner; SELECT limner.adopt_events(); RESET ROLE")
        connection.exec_driver_sql("GRANT SELECT ON limner.alembic_version TO " + ", ".join(roles.RUNTIME))
        connection.commit()


def _store_context_key(conn: psycopg.Connection, root: crypto.RootKey) -> None:
    ik, ok = context.pads(root)
    conn.execute("SET ROLE limner_ctx")
    conn.execute(
        "INSERT INTO limner_priv.ctx_key (kid, ik, ok) VALUES (%s, %s, %s)"
        " ON CONFLICT (kid) DO UPDATE SET ik = excluded.ik, ok = excluded.ok",
        [context.KID, ik, ok],
    )
    conn.execute("RESET ROLE")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(HERE / "migrations"))
    return config
