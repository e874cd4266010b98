"""Uploads as rows: reserved, claimed, settled or ended. Every state and the quota it costs change in one statement.

An upload belongs to an app; made with `X-User-ID` it is that end user's, and with it only that user's own are seen.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from limner.db.tx import Tx
from limner.kit import ids

STATES = ("pending", "processing", "ready", "rejected", "expired")
LIFE_S = 300
"""How long the URL that takes the bytes answers."""
CLAIM_S = 180
"""Longer than any processing takes: its process has died when this is over."""
KEEP_S = 7 * 86_400
"""How long a refused or expired upload can still be read about."""
COLUMNS = """
u.id, u.app_id, u.external_id, u.kind, u.name, u.state, u.size_bytes, u.sha256, u.tries, u.given_back, u.expires_at, u.due_at,
u.error_code, u.error_message, u.object_key, u.media_type, u.width, u.height, u.duration_ms, u.bytes AS stored_bytes, u.has_alpha,
u.thumbhash, u.colour, u.description_job, u.description_state, u.description, u.descriptions, u.created_at, u.ready_at
"""
RESERVE = "SELECT * FROM limner.reserve_upload(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
SETTLE = "SELECT limner.settle_upload(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) AS outcome"
END = "SELECT limner.end_upload(%s, %s, %s, %s, %s, %s, %s) AS ended"

Settled = Literal["ready", "lost", "full"]


class UploadNotFound(LookupError):
    """This app (and end user, when one is named) has no such upload."""


class KeyReused(ValueError):
    """The idempotency key was used for another upload."""


class QuotaFull(Exception):
    """The organization's uploads take all they may: `what` is "bytes" or "files", `used` of `limit`."""

    def __init__(self, what: Literal["bytes", "files"], used: int, limit: int) -> None:
        super().__init__(f"{used} of {limit} {what} are taken")
        self.what = what
        self.used = used
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Quota:
    """What an organization's uploads may take together."""

    max_bytes: int
    max_files: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client says it will bring: bytes, their SHA-256, and a name for display only."""

    app_id: UUID
    external_id: str | None
    kind: str
    name: str
    size_bytes: int
    sha256: bytes
    idempotency_key: str | None
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """A row. From `object_key` to `colour`: None until it is ready, and then of the picture as limner encoded it, or of the recording,
    which has no more than an object, a type, its bytes and `duration_ms`.

    `description` ({"text", "tags"}) is there when `description_state` is "ready"; `descriptions` counts those that failed.
    """

    id: UUID
    app_id: UUID
    external_id: str | None
    kind: str
    name: str
    state: str
    size_bytes: int
    sha256: bytes
    tries: int
    given_back: int
    expires_at: datetime
    due_at: datetime | None
    error_code: str | None
    error_message: str | None
    object_key: str | None
    media_type: str | None
    width: int | None
    height: int | None
    duration_ms: int | None
    stored_bytes: int | None
    has_alpha: bool | None
    thumbhash: bytes | None
    colour: str | None
    description_job: UUID | None
    description_state: str | None
    description: dict[str, Any] | None
    descriptions: int
    created_at: datetime
    ready_at: datetime | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What is kept, and where it lies: a picture as limner encoded it (`colour`: "#rrggbb"), or a recording as it came."""

    key: str
    media_type: str
    size_bytes: int
    width: int | None = None
    height: int | None = None
    has_alpha: bool | None = None
    thumbhash: bytes | None = None
    colour: str | None = None
    duration_ms: int | None = None


def raw_key(org_id: UUID, upload_id: UUID) -> str:
    """Where the bytes a client brings wait; never served, and gone once they were looked at."""
    return f"q/{org_id}/{upload_id}"


def picture_prefix(org_id: UUID, upload_id: UUID) -> str:
    """Where the picture as limner encoded it lies, or the recording, alone."""
    return f"u/{org_id}/{upload_id}/"


def variants_prefix(org_id: UUID, upload_id: UUID) -> str:
    """Where the picture's variants lie: never beside the picture, and of no other upload."""
    return f"v/{org_id}/{upload_id}/"


async def reserve(tx: Tx, wanted: Wanted, quota: Quota) -> tuple[Upload, bool]:
    """A place for the bytes, and whether it is the one this idempotency key got before. Raises QuotaFull, KeyReused."""
    row = await tx.get(
        RESERVE,
        [tx.ctx, ids.new(), wanted.app_id, wanted.external_id, wanted.kind, wanted.name, wanted.size_bytes, wanted.sha256,
         LIFE_S, wanted.idempotency_key, wanted.request_hash, quota.max_bytes, quota.max_files],
    )  # fmt: skip
    match row["outcome"]:
        case "full_bytes":
            raise QuotaFull("bytes", row["used_bytes"], quota.max_bytes)
        case "full_files":
            raise QuotaFull("files", row["used_files"], quota.max_files)
        case "reused":
            raise KeyReused("this idempotency key was used for another upload")
    return await get_of_org(tx, row["upload_id"]), row["outcome"] == "replayed"


async def get(tx: Tx, app_id: UUID, upload_id: UUID, external_id: str | None = None) -> Upload:
    """One upload of this app, and of this end user when one is named. Raises UploadNotFound."""
    return await _one(
        tx,
        " AND u.app_id = %(app)s AND (%(user)s::text IS NULL OR u.external_id = %(user)s)",
        upload_id,
        app=app_id,
        user=external_id,
    )


async def get_usable(tx: Tx, app_id: UUID, upload_id: UUID, external_id: str | None) -> Upload:
    """One upload that a job for this end user may use: its own, or one that the app brought for everybody. Raises UploadNotFound."""
    return await _one(
        tx,
        " AND u.app_id = %(app)s AND (%(user)s::text IS NULL OR u.external_id IS NULL OR u.external_id = %(user)s)",
        upload_id,
        app=app_id,
        user=external_id,
    )


async def get_of_org(tx: Tx, upload_id: UUID) -> Upload:
    """One upload of the organization. Raises UploadNotFound."""
    return await _one(tx, "", upload_id)


async def find_any(tx: Tx, upload_id: UUID) -> Upload | None:
    """One upload of the organization in whatever state, also a deleted one."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM limner.upload u WHERE u.org_id = %s AND u.id = %s", [tx.org_id, upload_id]
    )
    return Upload(**row) if row else None


async def list_of_app(
    tx: Tx, app_id: UUID, *, external_id: str | None, state: str | None, limit: int, before: UUID | None
) -> list[Upload]:
    """Newest first, older than the upload `before`; one end user's when one is named, else the whole app's."""
    owner = "" if external_id is None else " AND u.external_id = %(user)s"
    return await _list(
        tx, f"u.app_id = %(app)s{owner}", state=state, limit=limit, before=before, app=app_id, user=external_id
    )


async def list_of_org(tx: Tx, *, app_id: UUID | None, state: str | None, limit: int) -> list[Upload]:
    """Newest first, for an operator: one app's when it is named, else all of the organization's."""
    condition = "(%(app)s::uuid IS NULL OR u.app_id = %(app)s)"
    return await _list(tx, condition, state=state, limit=limit, before=None, app=app_id)


async def get_usage(tx: Tx) -> tuple[int, int]:
    """(bytes, files) that the organization's uploads take now."""
    row = await tx.find("SELECT used_bytes, used_files FROM limner.upload_usage WHERE org_id = %s", [tx.org_id])
    return (row["used_bytes"], row["used_files"]) if row else (0, 0)


async def claim(tx: Tx, upload_id: UUID) -> int | None:
    """Take an upload for CLAIM_S, to work on its bytes: the number of this try. None: somebody else has it, or it has ended."""
    row = await tx.get("SELECT limner.claim_upload(%s, %s, %s) AS try", [tx.ctx, upload_id, CLAIM_S])
    found: int | None = row["try"]
    return found


async def give_back(tx: Tx, upload_id: UUID, number: int) -> None:
    """End a claim without a result that was nobody's fault: the next one may take it at once."""
    await tx.get("SELECT limner.give_upload_back(%s, %s, %s)", [tx.ctx, upload_id, number])


async def settle(tx: Tx, upload_id: UUID, number: int, stored: Stored, quota: Quota) -> Settled:
    """Make it ready. `lost`: the claim is over, or the upload deleted; `full`: the encoding does not fit into the quota."""
    row = await tx.get(
        SETTLE,
        [tx.ctx, upload_id, number, quota.max_bytes, stored.key, stored.media_type, stored.width, stored.height, stored.size_bytes,
         stored.has_alpha, stored.thumbhash, stored.colour, stored.duration_ms],
    )  # fmt: skip
    outcome: Settled = row["outcome"]
    return outcome


async def reject(tx: Tx, upload_id: UUID, number: int, code: str, message: str) -> bool:
    """Refuse what was brought and give the quota back; False when the claim is over."""
    return await _end(tx, None, upload_id, "rejected", number, code, message)


async def expire(tx: Tx, upload_id: UUID) -> bool:
    """Nothing was brought in time: the quota comes back. False when it is not pending, or not over yet."""
    return await _end(tx, None, upload_id, "expired", None, "expired", "Nothing was uploaded in time.")


async def delete(tx: Tx, app_id: UUID | None, upload_id: UUID) -> bool:
    """Whatever state it is in: from now on it does not exist, and its quota comes back. `app_id` None: an operator deletes."""
    return await _end(tx, app_id, upload_id, "deleted", None, None, None)


async def tended(tx: Tx, upload: Upload) -> None:
    """What an upload of this state leaves behind was removed: its row goes, or waits until it may."""
    await tx.get("SELECT limner.tend_upload(%s, %s, %s, %s)", [tx.ctx, upload.id, upload.state, KEEP_S])


async def describe(tx: Tx, upload_id: UUID, job_id: UUID) -> None:
    """This job was ordered to describe it."""
    await tx.get("SELECT limner.describe_upload(%s, %s, %s)", [tx.ctx, upload_id, job_id])


async def note_description(tx: Tx, upload_id: UUID) -> bool:
    """Take over what the job that describes it has said, once it is closed; whether there was anything to take."""
    row = await tx.get("SELECT limner.note_description(%s, %s) AS noted", [tx.ctx, upload_id])
    return bool(row["noted"])


async def list_due(tx: Tx, limit: int) -> list[tuple[UUID, UUID]]:
    """(organization, upload) of what a worker has to look after now, in a system transaction of limner_dispatch."""
    rows = await tx.all(
        "SELECT u.org_id, u.id FROM limner.upload u WHERE u.due_at <= clock_timestamp() ORDER BY u.due_at LIMIT %s",
        [limit],
    )
    return [(row["org_id"], row["id"]) for row in rows]


async def _one(tx: Tx, condition: str, upload_id: UUID, **values: UUID | str | None) -> Upload:
    row = await tx.find(
        f"SELECT {COLUMNS} FROM limner.upload u WHERE u.org_id = %(org)s AND u.id = %(id)s AND u.state <> 'deleted'{condition}",
        {"org": tx.org_id, "id": upload_id, **values},
    )
    if row is None:
        raise UploadNotFound(f"there is no upload {upload_id}")
    return Upload(**row)


async def _list(
    tx: Tx, condition: str, *, state: str | None, limit: int, before: UUID | None, **values: UUID | str | None
) -> list[Upload]:
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM limner.upload u WHERE u.org_id = %(org)s AND {condition} AND u.id < %(before)s"
        " AND u.state <> 'deleted' AND (%(state)s::text IS NULL OR u.state = %(state)s) ORDER BY u.id DESC LIMIT %(limit)s",
        {"org": tx.org_id, "state": state, "limit": limit, "before": before or UUID(int=2**128 - 1), **values},
    )
    return [Upload(**row) for row in rows]


async def _end(
    tx: Tx, app_id: UUID | None, upload_id: UUID, state: str, number: int | None, code: str | None, message: str | None
) -> bool:
    row = await tx.get(END, [tx.ctx, app_id, upload_id, state, number, code, message])
    return bool(row["ended"])
