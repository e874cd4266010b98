"""Which schema revision a database is at, and which one this release needs.

Asked at every start of every process, so it reads file names and one row: Alembic (and SQLAlchemy behind it) is
loaded by `limner db migrate` alone.
"""

from pathlib import Path

import psycopg

VERSIONS = Path(__file__).parent / "migrations" / "versions"
FLOOR_VERSION = 150000
"""The oldest server limner works with, as PostgreSQL counts versions."""


def head() -> str:
    """The revision this release needs: migrations are numbered in one line, the highest number is the last."""
    return max(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*_*.py"))


def current(conn: psycopg.Connection) -> str | None:
    """The revision the database is at, or None before the first migration."""
    if conn.execute("SELECT to_regclass('limner.alembic_version')").fetchone() == (None,):
        return None
    row = conn.execute("SELECT version_num FROM limner.alembic_version").fetchone()
    return row[0] if row else None
