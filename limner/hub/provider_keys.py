"""Organizations' own keys at providers (BYOK): put, listed, switched and taken away; never shown."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from limner.db.context import PLATFORM
from limner.db.tx import Row, Tx
from limner.egress import urls
from limner.egress.answers import DestinationNotAllowed
from limner.egress.own_keys import OwnKeys, OwnKeyUnusable, SealedKey
from limner.hub.catalog import ProviderNotFound
from limner.hub.providers import configuration
from limner.kit import ids, origins

COLUMNS = """p.name AS provider, k.last4, k.fingerprint, k.is_enabled, k.created_by, k.created_at, k.last_used_at, k.last_error,
k.last_error_at, k.origin"""
SOURCE = "limner.provider_key k JOIN limner.provider p ON p.org_id = k.provider_org AND p.id = k.provider_id"
MOST = 1000
BATCH = 200


class KeyNotFound(LookupError):
    """The organization has no key of its own at this provider."""


class NotKeyed(ValueError):
    """This provider works with no key of an organization's own: it runs on this machine, or its adapter cannot."""


class BadKey(ValueError):
    """Not a key; the message repeats none of it."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes a key, for the audit log: an app by the id of its API key, an operator by login name."""

    kind: Literal["app", "operator"]
    name: str


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """What may be told of a key. `last_error`: why the provider did not take it, at its latest use; None: it did.

    `origin`: where it is sent, and nowhere else.
    """

    provider: str
    last4: str
    fingerprint: str
    is_enabled: bool
    created_by: str
    created_at: datetime
    last_used_at: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    origin: str

    @property
    def sent_to(self) -> str:
        """The origin as people write it: without the port that goes without saying."""
        scheme, _, rest = self.origin.partition("://")
        return f"{scheme}://{rest.removesuffix(f':{origins.PORTS[scheme]}')}"


async def put(tx: Tx, keys: OwnKeys, provider: str, key: str, actor: Actor, *, enabled: bool = True) -> ProviderKey:
    """Keep a key, instead of the one before. In use within seconds. Raises catalog.ProviderNotFound, NotKeyed, BadKey."""
    found = await _provider(tx, provider)
    origin = _origin(found)
    row_id = ids.new()
    try:
        sealed = keys.seal(tx.org_id, found["id"], row_id, origin, key)
    except ValueError as error:
        raise BadKey(str(error)) from None
    await tx.execute(
        "SELECT limner.put_provider_key(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [tx.ctx, row_id, found["org_id"], found["id"], provider, origin, sealed.key.sealed, sealed.kid, sealed.last4,
         sealed.fingerprint, enabled, actor.kind, actor.name],
    )  # fmt: skip
    return await get(tx, provider)


async def get(tx: Tx, provider: str) -> ProviderKey:
    """Raises KeyNotFound."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM {SOURCE} WHERE k.org_id = %(org)s AND p.name = %(name)s ORDER BY p.org_id = %(platform)s LIMIT 1",
        {"org": tx.org_id, "name": provider, "platform": PLATFORM},
    )
    if row is None:
        raise KeyNotFound(f"there is no own key for {provider}")
    return ProviderKey(**row)


async def list_all(tx: Tx) -> list[ProviderKey]:
    """By provider."""
    query = f"SELECT {COLUMNS} FROM {SOURCE} WHERE k.org_id = %s ORDER BY p.name LIMIT %s"
    return [ProviderKey(**row) for row in await tx.all(query, [tx.org_id, MOST])]


async def switch(tx: Tx, provider: str, actor: Actor, *, enabled: bool) -> ProviderKey:
    """Use it again, or leave it aside. Raises KeyNotFound."""
    found = await _keyed(tx, provider)
    query = "SELECT limner.switch_provider_key(%s, %s, %s, %s, %s, %s)"
    await tx.get(query, [tx.ctx, found, provider, enabled, actor.kind, actor.name])
    return await get(tx, provider)


async def remove(tx: Tx, provider: str, actor: Actor) -> None:
    """Raises KeyNotFound."""
    found = await _keyed(tx, provider)
    query = "SELECT limner.remove_provider_key(%s, %s, %s, %s, %s)"
    await tx.get(query, [tx.ctx, found, provider, actor.kind, actor.name])


async def reseal(tx: Tx, keys: OwnKeys, after: UUID) -> tuple[int, int, UUID | None]:
    """Bring the organization's next keys beyond `after` under the present root key: how many were brought, how many would not open,
    and where to go on; None at the end.

    One that was changed meanwhile is left as it is. Jobs go on all the while: old and new open alike.
    """
    rows = await tx.all(
        "SELECT k.id, k.provider_id, k.origin, k.sealed FROM limner.provider_key k"
        " WHERE k.org_id = %s AND k.kid <> %s AND k.id > %s ORDER BY k.id LIMIT %s",
        [tx.org_id, keys.kid, after, BATCH],
    )
    done = 0
    for row in rows:
        try:
            again = keys.resealed(SealedKey(tx.org_id, row["provider_id"], row["id"], row["sealed"]), row["origin"])
        except OwnKeyUnusable:
            continue
        done += await tx.execute(
            "UPDATE limner.provider_key SET sealed = %s, kid = %s WHERE org_id = %s AND id = %s AND sealed = %s",
            [again.sealed, keys.kid, tx.org_id, row["id"], row["sealed"]],
        )
    return done, len(rows) - done, rows[-1]["id"] if len(rows) == BATCH else None


async def _provider(tx: Tx, name: str) -> Row:
    """The organization's own provider of this name, else the platform's."""
    row = await tx.find(
        "SELECT org_id, id, adapter, base_url FROM limner.provider WHERE org_id IN (%(org)s, %(platform)s) AND name = %(name)s"
        " ORDER BY org_id = %(platform)s LIMIT 1",
        {"org": tx.org_id, "platform": PLATFORM, "name": name},
    )
    if row is None:
        raise ProviderNotFound(f"there is no provider {name} here")
    return row


async def _keyed(tx: Tx, provider: str) -> UUID:
    row = await tx.find(
        f"SELECT k.provider_id FROM {SOURCE} WHERE k.org_id = %(org)s AND p.name = %(name)s ORDER BY p.org_id = %(platform)s LIMIT 1",
        {"org": tx.org_id, "name": provider, "platform": PLATFORM},
    )
    if row is None:
        raise KeyNotFound(f"there is no own key for {provider}")
    return UUID(str(row["provider_id"]))


def _origin(provider: Row) -> str:
    """Where a provider's requests go, which its operator said."""
    address = configuration.address(provider["adapter"], provider["base_url"])
    if provider["adapter"] not in configuration.with_own_keys() or not address:
        raise NotKeyed("this provider takes no keys of organizations")
    try:
        return urls.read(address).origin
    except DestinationNotAllowed:
        raise NotKeyed("this provider's address cannot be called") from None
