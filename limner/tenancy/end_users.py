"""End users: the people inside an app, made by their first job or grant, with their welcome credits."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from limner.db.tx import Tx
from limner.tenancy import audit

COLUMNS = "id, app_id, external_id, metadata, is_active, created_at"
MAX_EXTERNAL_ID = 255


class UserNotFound(LookupError):
    """The app has no end user of this external id."""


class UserInactive(Exception):
    """The end user is deactivated."""


@dataclass(frozen=True, slots=True)
class EndUser:
    id: UUID
    app_id: UUID
    external_id: str
    metadata: dict[str, Any]
    is_active: bool
    created_at: datetime


def valid_external_id(text: str) -> bool:
    """1 to 255 printable characters, without surrounding blanks: what an app may call its user.

    U+FFFD is what bytes that are not UTF-8 turn into in a path: two different ids would become one user.
    """
    return 0 < len(text) <= MAX_EXTERNAL_ID and text.isprintable() and text == text.strip() and "\ufffd" not in text


async def get(tx: Tx, app_id: UUID, external_id: str) -> EndUser:
    """Raises UserNotFound; never makes one."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM limner.end_user WHERE org_id = %s AND app_id = %s AND external_id = %s",
        [tx.org_id, app_id, external_id],
    )
    if row is None:
        raise UserNotFound(f"there is no user {external_id}")
    return EndUser(**row)


async def find_id(tx: Tx, app_id: UUID, external_id: str) -> UUID | None:
    """The user's id, or None."""
    row = await tx.find(
        "SELECT id FROM limner.end_user WHERE org_id = %s AND app_id = %s AND external_id = %s",
        [tx.org_id, app_id, external_id],
    )
    return None if row is None else UUID(str(row["id"]))


async def require_active(tx: Tx, app_id: UUID, external_id: str) -> None:
    """Raises UserInactive when the app's user is deactivated; an absent one is for the caller to find absent."""
    row = await tx.find(
        "SELECT is_active FROM limner.end_user WHERE org_id = %s AND app_id = %s AND external_id = %s",
        [tx.org_id, app_id, external_id],
    )
    if row is not None and not row["is_active"]:
        raise UserInactive(external_id)


async def list_of_app(tx: Tx, app_id: UUID, limit: int = 100, after: str = "") -> list[EndUser]:
    """By external id."""
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM limner.end_user WHERE org_id = %s AND app_id = %s AND external_id > %s"
        " ORDER BY external_id LIMIT %s",
        [tx.org_id, app_id, after, limit],
    )
    return [EndUser(**row) for row in rows]


async def change(
    tx: Tx,
    user: EndUser,
    *,
    actor: str,
    is_active: bool | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Deactivate or reactivate, replace the metadata (a JSON object of at most 16 KiB)."""
    await tx.execute(
        "UPDATE limner.end_user SET is_active = coalesce(%(active)s, is_active), metadata = coalesce(%(metadata)s, metadata)"
        " WHERE org_id = %(org)s AND id = %(id)s",
        {
            "active": is_active,
            "metadata": Jsonb(metadata) if metadata is not None else None,
            "org": tx.org_id,
            "id": user.id,
        },
    )
    await audit.record(tx, "end_user.changed", "end_user", user.id, actor, is_active=is_active)
