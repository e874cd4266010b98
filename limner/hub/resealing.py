"""After the root key was changed: what was sealed under an old one is sealed again under the new one, while everything goes on."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from limner.db.pools import Database
from limner.egress.own_keys import OwnKeys
from limner.events import endpoints
from limner.hub import provider_keys
from limner.kit.crypto import RootKey, Sealer
from limner.tasks.chores import Done, organizations
from limner.telemetry import logs

EVERY_S = 3600.0
ROLE = "limner_operator"
log = logs.get("resealing")


@dataclass(frozen=True, slots=True)
class Resealed:
    """`keys`, `secrets`: organizations' own keys and webhook secrets that are under the present root key now. `broken`: those that no
    root key here opens: they have to be given again."""

    keys: int = 0
    secrets: int = 0
    broken: int = 0

    def __add__(self, other: "Resealed") -> "Resealed":
        return Resealed(self.keys + other.keys, self.secrets + other.secrets, self.broken + other.broken)


class Resealing:
    """One organization after the other, a bounded number of rows in a transaction."""

    def __init__(self, db: Database, root: RootKey) -> None:
        self._db = db
        self._keys = OwnKeys(root)
        self._sealer = Sealer(root, endpoints.PURPOSE)

    async def reseal_all(self) -> Resealed:
        total = Resealed()
        for org_id in await organizations(self._db):
            total += await self._organization(org_id)
        return total

    async def reseal_old(self, _: datetime) -> Done:
        """The same as a worker's duty."""
        total = await self.reseal_all()
        if total.broken:
            log.error("seal.broken", broken=total.broken)
        return Done({"keys": total.keys, "secrets": total.secrets, "broken": total.broken})

    async def _organization(self, org_id: UUID) -> Resealed:
        total = Resealed()
        after: UUID | None = UUID(int=0)
        while after is not None:
            async with self._db.tenant_tx(org_id, ROLE) as tx:
                done, broken, after = await provider_keys.reseal(tx, self._keys, after)
            total += Resealed(keys=done, broken=broken)
        async with self._db.tenant_tx(org_id, ROLE) as tx:
            done, broken = await endpoints.reseal(tx, self._sealer)
        return total + Resealed(secrets=done, broken=broken)
