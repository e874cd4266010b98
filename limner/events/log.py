"""The log's rows, in the order they were written for one subject."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from limner.db.tx import Tx


@dataclass(frozen=True, slots=True)
class Event:
    """`subject_id`: the job, document or other thing it is about."""

    id: UUID
    type: str
    subject_id: UUID
    payload: dict[str, Any]
    created_at: datetime


async def list_of_subject(tx: Tx, subject_id: UUID, limit: int = 1000) -> list[Event]:
    """Oldest first."""
    rows = await tx.all(
        "SELECT id, type, subject_id, payload, created_at FROM limner.event"
        " WHERE org_id = %s AND subject_id = %s ORDER BY created_at, id LIMIT %s",
        [tx.org_id, subject_id, limit],
    )
    return [Event(**row) for row in rows]
