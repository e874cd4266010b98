"""Who changed what: one append-only row for each change made from outside the API's own verbs."""

from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from limner.db.tx import Row, Tx
from limner.kit import ids


async def record(tx: Tx, action: str, entity_type: str, entity_id: UUID | str, actor: str, **metadata: Any) -> None:
    """Write that `actor` (an operator's login name) did `action`, e.g. "app.disabled"."""
    await tx.execute(
        "INSERT INTO limner.audit_log (org_id, id, action, entity_type, entity_id, actor_type, actor, metadata)"
        " VALUES (%s, %s, %s, %s, %s, 'operator', %s, %s)",
        [tx.org_id, ids.new(), action, entity_type, str(entity_id), actor, Jsonb(metadata)],
    )


async def list_entries(tx: Tx, limit: int = 100, before: datetime | None = None) -> list[Row]:
    """Newest first."""
    return await tx.all(
        "SELECT created_at, actor, action, entity_type, entity_id, metadata FROM limner.audit_log"
        " WHERE org_id = %(org)s AND created_at < coalesce(%(before)s, 'infinity'::timestamptz)"
        " ORDER BY id DESC LIMIT %(limit)s",
        {"org": tx.org_id, "before": before, "limit": limit},
    )
