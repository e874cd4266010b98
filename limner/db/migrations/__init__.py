"""Hand-written SQL, applied in order by Alembic. Each migration waits at most 2 s for a lock."""

from pathlib import Path

from alembic import op

HERE = Path(__file__).parent


def run_sql(revision: str) -> None:
    """Run every file of sql/<revision>/ in name order, as it stands, on the migrating connection."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute("SET LOCAL lock_timeout = '2s'")
    for path in sorted((HERE / "sql" / revision).glob("*.sql")):
        connection.execute(path.read_text())
