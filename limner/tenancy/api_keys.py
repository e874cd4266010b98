"""API keys: `lmn_live_` + 256 random bits + a checksum, stored as SHA-256, shown once.

The checksum lets a scanner, and limner itself, refuse a mistyped key without a look-up (GitHub's token format
does the same).
"""

import base64
import re
import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from limner.db.tx import Tx
from limner.kit import crypto, ids
from limner.tenancy import audit
from limner.tenancy.apps import App

PREFIX = "lmn_live_"
SECRET_LENGTH = 43  # 32 bytes in URL-safe base64 without padding
CHECKSUM_LENGTH = 6
SHOWN_LENGTH = len(PREFIX) + 6
SHAPE = re.compile(rf"{PREFIX}([A-Za-z0-9_-]{{{SECRET_LENGTH}}})([A-Za-z0-9_-]{{{CHECKSUM_LENGTH}}})", re.ASCII)

SCOPES = (
    "jobs:create", "jobs:read", "uploads:create", "users:read", "tokens:grant", "org:spend", "webhooks:manage", "providers:write",
    "settings:write",
)  # fmt: skip
DEFAULT_SCOPES = ("jobs:create", "jobs:read", "users:read")
COLUMNS = "id, app_id, name, prefix, scopes, last_used_at, expires_at, revoked_at, created_at"


class KeyNotFound(LookupError):
    """The organization has no such key."""


class KeyEnded(ValueError):
    """The key is revoked or expired: a successor would bring it back to life."""


class UnknownScope(ValueError):
    """Not one of SCOPES."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret: `prefix` is what may be shown."""

    id: UUID
    app_id: UUID
    name: str
    prefix: str
    scopes: list[str]
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ResolvedKey:
    """What a presented key stands for; `live` is False once it is revoked or expired."""

    org_id: UUID
    key_id: UUID
    app_id: UUID
    scopes: frozenset[str]
    live: bool
    app_enabled: bool
    org_active: bool
    user_jobs_per_min: int | None
    app_jobs_per_min: int | None
    org_jobs_per_min: int | None
    org_max_open: int | None
    body_users: bool


def generate() -> str:
    """A new key's full text."""
    body = secrets.token_urlsafe(32)
    return f"{PREFIX}{body}{_checksum(body)}"


def digest(text: str) -> bytes | None:
    """What a presented key is looked up by, or None when it cannot be a key of ours."""
    match = SHAPE.fullmatch(text)
    if match is None or not secrets.compare_digest(_checksum(match[1]), match[2]):
        return None
    return crypto.sha256(text.encode())


def _checksum(body: str) -> str:
    packed = zlib.crc32(body.encode()).to_bytes(4, "big")
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


async def create(
    tx: Tx,
    app: App,
    *,
    actor: str,
    name: str = "",
    scopes: tuple[str, ...] = DEFAULT_SCOPES,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; its full text is returned here and nowhere else. Raises UnknownScope."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise UnknownScope(f"unknown scope {', '.join(unknown)}; there are {', '.join(SCOPES)}")
    text = generate()
    row = await tx.get(
        "INSERT INTO limner.api_key (org_id, id, app_id, name, prefix, key_hash, scopes, expires_at)"
        f" VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING {COLUMNS}",
        [
            tx.org_id,
            ids.new(),
            app.id,
            name,
            text[:SHOWN_LENGTH],
            crypto.sha256(text.encode()),
            list(scopes),
            expires_at,
        ],
    )
    key = ApiKey(**row)
    await audit.record(tx, "api_key.created", "api_key", key.id, actor, prefix=key.prefix, scopes=key.scopes)
    return key, text


async def get(tx: Tx, prefix_or_id: str) -> ApiKey:
    """By id, or by the shown prefix when only one key has it. Raises KeyNotFound."""
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM limner.api_key WHERE org_id = %(org)s AND (id::text = %(key)s OR prefix = %(key)s) LIMIT 2",
        {"org": tx.org_id, "key": prefix_or_id},
    )
    if len(rows) != 1:
        raise KeyNotFound(f"{'several keys match' if rows else 'there is no key'} {prefix_or_id}")
    return ApiKey(**rows[0])


async def list_of_app(tx: Tx, app: App, limit: int = 1000) -> list[ApiKey]:
    """Newest first."""
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM limner.api_key WHERE org_id = %s AND app_id = %s ORDER BY id DESC LIMIT %s",
        [tx.org_id, app.id, limit],
    )
    return [ApiKey(**row) for row in rows]


async def rotate(tx: Tx, key: ApiKey, app: App, *, actor: str, overlap_s: int) -> tuple[ApiKey, str]:
    """A new key of the same name, scopes and lifetime; the old one lives `overlap_s` longer, so that callers can
    change over. Raises KeyEnded.
    """
    now = (await tx.get("SELECT clock_timestamp() AS now"))["now"]
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise KeyEnded(f"the key {key.prefix} has ended: make a new one")
    expires_at = now + (key.expires_at - key.created_at) if key.expires_at is not None else None
    fresh, text = await create(tx, app, actor=actor, name=key.name, scopes=tuple(key.scopes), expires_at=expires_at)
    await tx.execute(
        "UPDATE limner.api_key SET expires_at = least(coalesce(expires_at, 'infinity'),"
        " clock_timestamp() + make_interval(secs => %(overlap)s)) WHERE org_id = %(org)s AND id = %(id)s",
        {"overlap": overlap_s, "org": tx.org_id, "id": key.id},
    )
    await audit.record(tx, "api_key.rotated", "api_key", key.id, actor, successor=str(fresh.id), overlap_s=overlap_s)
    return fresh, text


async def revoke(tx: Tx, key: ApiKey, *, actor: str) -> None:
    """End a key: refused everywhere within a minute (look-ups are cached that long)."""
    await tx.execute(
        "UPDATE limner.api_key SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE org_id = %s AND id = %s",
        [tx.org_id, key.id],
    )
    await audit.record(tx, "api_key.revoked", "api_key", key.id, actor, prefix=key.prefix)


async def resolve(tx: Tx, key_hash: bytes) -> ResolvedKey | None:
    """What a key stands for, in a system transaction of limner_api: the one look-up before a tenant is known."""
    row = await tx.find("SELECT * FROM limner.resolve_key(%s)", [key_hash])
    return ResolvedKey(**{**row, "scopes": frozenset(row["scopes"])}) if row else None
