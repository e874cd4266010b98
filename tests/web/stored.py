"""Everything of one organization that a refused request must leave as it was."""

from typing import Any
from uuid import UUID

import psycopg

TABLES = (
    "job", "job_queue", "job_input", "transfer", "wallet", "end_user", "usage_record", "provider_call", "event",
    "audit_log", "app", "api_key", "webhook_endpoint", "webhook_delivery", "upload", "batch", "batch_item",
    "provider_key", "ai_settings",
)  # fmt: skip
QUERY = " UNION ALL ".join(
    f"SELECT '{table}' AS what, count(*)::bigint AS n FROM limner.{table} WHERE org_id = %(org)s" for table in TABLES
)
MONEY = """
UNION ALL SELECT 'available', coalesce(sum(available_mc), 0)::bigint FROM limner.wallet WHERE org_id = %(org)s
UNION ALL SELECT 'held', coalesce(sum(held_mc), 0)::bigint FROM limner.wallet WHERE org_id = %(org)s
UNION ALL SELECT 'versions', coalesce(sum(version), 0)::bigint FROM limner.wallet WHERE org_id = %(org)s
"""


def rows(superuser: psycopg.Connection, org_id: UUID) -> dict[str, Any]:
    """Rows by table, and what the wallets hold."""
    return dict(superuser.execute(QUERY + MONEY, {"org": org_id}).fetchall())
