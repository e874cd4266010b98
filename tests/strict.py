"""A migrated database in which what the invariants find afterwards is refused at once."""

from pathlib import Path

import psycopg

from limner.db import migrate as real
from limner.kit.crypto import RootKey

SQL = Path(__file__).with_name("strict.sql")


def migrate(url: str, root: RootKey) -> None:
    """Migrate, then add the constraints of strict.sql. `url` is the migrating role's."""
    real.migrate(url, root)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(SQL.read_text())
