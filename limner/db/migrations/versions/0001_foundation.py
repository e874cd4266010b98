"""Context, tenancy, ledger, hub: the tables and the only functions that write money and job state."""

from limner.db.migrations import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql("0001")
