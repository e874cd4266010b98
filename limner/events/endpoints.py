"""Webhook endpoints: where an app's events are sent, and the secrets that say they are limner's."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from limner.db.tx import Row, Tx
from limner.kit import ids, signing
from limner.kit.crypto import SealBroken, Sealer
from limner.kit.signing import Keys

PURPOSE = "webhook"
"""What secrets are sealed for (limner.kit.crypto.Sealer)."""
COLUMNS = """e.id, e.app_id, e.kind, e.url, e.description, e.event_types, e.is_enabled, e.disabled_reason, e.failing_since,
e.last_success_at, CASE WHEN e.previous_until > clock_timestamp() THEN e.previous_until END AS previous_until, e.public_key, e.created_at"""
SLOTS = {"secret": "secret", "previous_secret": "secret", "signing_key": "ed25519"}
"""Columns with sealed values, and what each is bound to besides its row."""
CHANGEABLE = frozenset({"url", "description", "event_types"})


class EndpointNotFound(LookupError):
    """This app has no such webhook."""


class TooManyEndpoints(ValueError):
    """The app has as many webhooks as it may."""


class UrlTaken(ValueError):
    """The app has a webhook with this URL already: it would hear of everything twice."""

    def __init__(self, endpoint_id: UUID | None) -> None:
        super().__init__("this URL is registered already" + (f" as {endpoint_id}" if endpoint_id else ""))
        self.endpoint_id = endpoint_id


class DefaultEndpoint(ValueError):
    """The app's own endpoint cannot be removed: its secret signs what single requests ask for. Its URL can be."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`kind` app: the app's own, whose `url` may be None. `event_types` empty: a job's three ends. `previous_until`: the
    secret before the last rotation signs too, until then.
    """

    id: UUID
    app_id: UUID
    kind: str
    url: str | None
    description: str
    event_types: list[str]
    is_enabled: bool
    disabled_reason: str | None
    failing_since: datetime | None
    last_success_at: datetime | None
    previous_until: datetime | None
    public_key: bytes | None
    created_at: datetime


async def create(
    tx: Tx, sealer: Sealer, app_id: UUID, url: str, *, most: int, description: str = "", event_types: list[str] | None = None,
    ed25519: bool = False,
) -> Endpoint:  # fmt: skip
    """Register a checked URL, with a secret of its own. Raises UrlTaken, TooManyEndpoints (`most` an app)."""
    endpoint_id = ids.new()
    seed = signing.new_secret() if ed25519 else None
    facts = [
        tx.ctx, app_id, endpoint_id, url, description, event_types or [],
        _seal(sealer, tx.org_id, endpoint_id, signing.new_secret()),
        None if seed is None else _seal(sealer, tx.org_id, endpoint_id, seed, "ed25519"),
        None if seed is None else signing.public_key(seed), most,
    ]  # fmt: skip
    try:
        row = await tx.get(
            "SELECT * FROM limner.add_endpoint(%s, %s, %s, 'extra', %s, %s, %s::text[], %s, %s, %s, %s)", facts
        )
    except psycopg.errors.UniqueViolation:  # another webhook was moved to this URL at this moment
        raise UrlTaken(None) from None
    if row["outcome"] == "too_many":
        raise TooManyEndpoints(f"an app has at most {most} webhooks")
    if row["outcome"] == "exists":
        raise UrlTaken(row["endpoint_id"])
    return await get(tx, app_id, endpoint_id)


async def ensure_default(tx: Tx, sealer: Sealer, app_id: UUID) -> Endpoint:
    """The app's own endpoint, made when it is first asked for, with a secret."""
    row = await tx.find(
        "SELECT e.id AS endpoint_id, e.secret IS NULL AS unsigned FROM limner.webhook_endpoint e"
        " WHERE e.org_id = %s AND e.app_id = %s AND e.kind = 'app'",
        [tx.org_id, app_id],
    )
    if row is None:
        row = await tx.get(
            "SELECT *, true AS unsigned FROM limner.add_endpoint(%s, %s, %s, 'app', NULL, '', '{}', NULL, NULL, NULL, 0)",
            [tx.ctx, app_id, ids.new()],
        )
    if row["unsigned"]:
        await give_secret(tx, sealer, row["endpoint_id"])
    return await get(tx, app_id, row["endpoint_id"])


async def give_secret(tx: Tx, sealer: Sealer, endpoint_id: UUID) -> None:
    """A first secret for an endpoint that has none; whoever comes second changes nothing."""
    await tx.execute(
        "UPDATE limner.webhook_endpoint SET secret = %s WHERE org_id = %s AND id = %s AND secret IS NULL",
        [_seal(sealer, tx.org_id, endpoint_id, signing.new_secret()), tx.org_id, endpoint_id],
    )


async def get(tx: Tx, app_id: UUID | None, endpoint_id: UUID) -> Endpoint:
    """One of the app's; `app_id` None: of the organization's, for its operator. Raises EndpointNotFound."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM limner.webhook_endpoint e WHERE e.org_id = %(org)s AND e.id = %(id)s AND e.removed_at IS NULL"
        " AND (%(app)s::uuid IS NULL OR e.app_id = %(app)s)",
        {"org": tx.org_id, "id": endpoint_id, "app": app_id},
    )
    if row is None:
        raise EndpointNotFound(f"there is no webhook {endpoint_id}")
    return Endpoint(**row)


async def list_of_app(tx: Tx, app_id: UUID, limit: int = 1000) -> list[Endpoint]:
    """The app's own first, then the others by age."""
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM limner.webhook_endpoint e WHERE e.org_id = %s AND e.app_id = %s AND e.removed_at IS NULL"
        " ORDER BY e.kind, e.id LIMIT %s",
        [tx.org_id, app_id, limit],
    )
    return [Endpoint(**row) for row in rows]


async def keys(tx: Tx, sealer: Sealer, endpoint_id: UUID) -> Keys:
    """What signs for it now. Raises EndpointNotFound (also without a secret yet), crypto.SealBroken."""
    row = await tx.find(
        "SELECT e.secret, e.signing_key, CASE WHEN e.previous_until > clock_timestamp() THEN e.previous_secret END AS previous"
        " FROM limner.webhook_endpoint e WHERE e.org_id = %s AND e.id = %s",
        [tx.org_id, endpoint_id],
    )
    if row is None or row["secret"] is None:
        raise EndpointNotFound(f"the webhook {endpoint_id} has no secret")
    return _open(sealer, tx.org_id, endpoint_id, row)


async def change(tx: Tx, endpoint: Endpoint, facts: dict[str, Any]) -> Endpoint:
    """Set these of CHANGEABLE (the URL checked). Raises UrlTaken."""
    if not facts.keys() <= CHANGEABLE:
        raise ValueError(f"not to be changed: {sorted(facts.keys() - CHANGEABLE)}")
    if facts:
        sets = ", ".join(["turn_at = clock_timestamp()", *(f"{name} = %({name})s" for name in sorted(facts))])
        try:
            await tx.execute(
                f"UPDATE limner.webhook_endpoint SET {sets} WHERE org_id = %(org)s AND id = %(id)s AND removed_at IS NULL",
                {**facts, "org": tx.org_id, "id": endpoint.id},
            )
        except psycopg.errors.UniqueViolation:
            raise UrlTaken(None) from None
    return await get(tx, endpoint.app_id, endpoint.id)


async def switch(tx: Tx, endpoint: Endpoint, *, enabled: bool) -> Endpoint:
    """Turn it on, with what waited for it, or off: what waits then waits until it is on again."""
    await tx.execute(
        "UPDATE limner.webhook_endpoint SET is_enabled = %(enabled)s, failing_since = NULL, turn_at = clock_timestamp(),"
        " disabled_reason = CASE WHEN %(enabled)s THEN NULL ELSE coalesce(disabled_reason, 'by_hand') END"
        " WHERE org_id = %(org)s AND id = %(id)s AND is_enabled <> %(enabled)s",
        {"enabled": enabled, "org": tx.org_id, "id": endpoint.id},
    )
    return await get(tx, endpoint.app_id, endpoint.id)


async def rotate(tx: Tx, sealer: Sealer, endpoint: Endpoint, overlap_s: int) -> Endpoint:
    """A new secret; the old one signs beside it for `overlap_s` more. One rotation at a time: the one before ends."""
    await tx.execute(
        "UPDATE limner.webhook_endpoint SET previous_secret = secret, secret = %s,"
        " previous_until = clock_timestamp() + make_interval(secs => %s) WHERE org_id = %s AND id = %s",
        [_seal(sealer, tx.org_id, endpoint.id, signing.new_secret()), overlap_s, tx.org_id, endpoint.id],
    )
    return await get(tx, endpoint.app_id, endpoint.id)


async def remove(tx: Tx, endpoint: Endpoint) -> None:
    """End it: nothing more is sent there, its secrets are gone, receipts still tell what was. Raises DefaultEndpoint."""
    if endpoint.kind == "app":
        raise DefaultEndpoint("the app's own webhook cannot be removed; its URL can")
    await tx.execute(
        "UPDATE limner.webhook_endpoint SET removed_at = clock_timestamp(), is_enabled = false, secret = NULL,"
        " previous_secret = NULL, previous_until = NULL, signing_key = NULL, public_key = NULL, turn_at = NULL"
        " WHERE org_id = %s AND id = %s",
        [tx.org_id, endpoint.id],
    )


async def reseal(tx: Tx, sealer: Sealer, limit: int = 10_000) -> tuple[int, int]:
    """Bring the organization's secrets that an old root key sealed under the present one: how many, and how many would not open."""
    rows = await tx.all(
        "SELECT e.id, e.secret, e.previous_secret, e.signing_key FROM limner.webhook_endpoint e"
        " WHERE e.org_id = %s AND e.secret IS NOT NULL ORDER BY e.id LIMIT %s",
        [tx.org_id, limit],
    )
    done = broken = 0
    for row in rows:
        old = {name: row[name] for name in SLOTS if row[name] is not None and not sealer.seals_as(row[name])}
        try:
            new = {name: _again(sealer, tx.org_id, row["id"], sealed, SLOTS[name]) for name, sealed in old.items()}
        except SealBroken:
            broken += len(old)
            continue
        for name, sealed in new.items():
            done += await tx.execute(
                f"UPDATE limner.webhook_endpoint SET {name} = %s WHERE org_id = %s AND id = %s AND {name} = %s",
                [sealed, tx.org_id, row["id"], old[name]],
            )
    return done, broken


def _again(sealer: Sealer, org_id: UUID, endpoint_id: UUID, sealed: bytes, slot: str) -> bytes:
    return _seal(sealer, org_id, endpoint_id, sealer.open(sealed, org_id, endpoint_id, slot), slot)


def _seal(sealer: Sealer, org_id: UUID, endpoint_id: UUID, secret: bytes, slot: str = "secret") -> bytes:
    return sealer.seal(secret, org_id, endpoint_id, slot)


def _open(sealer: Sealer, org_id: UUID, endpoint_id: UUID, row: Row) -> Keys:
    live = [sealed for sealed in (row["secret"], row["previous"]) if sealed is not None]
    seed = row["signing_key"]
    return Keys(
        tuple(sealer.open(sealed, org_id, endpoint_id, "secret") for sealed in live),
        None if seed is None else sealer.open(seed, org_id, endpoint_id, "ed25519"),
    )
