"""The signed tenant context, and the database's clock it expires by.

`kid.orgs.exp.hmac`: the database verifies it with a key that no run-time role can read, so that SQL injected
into one organization's request cannot name another organization (docs/decisions/0003).
"""

import time
from collections.abc import Collection
from uuid import UUID

from limner.kit import crypto

KID = 1
LIFE_S = 60
PLATFORM = UUID(int=0)  # the reserved organization that owns installation-wide catalog rows


class DatabaseClock:
    """Seconds since the epoch as the database counts them: wrong clocks of this machine change nothing."""

    def __init__(self) -> None:
        self._offset_s: float | None = None

    def sync(self, database_epoch_s: float) -> None:
        """Remember what the database's clock said just now."""
        self._offset_s = database_epoch_s - time.monotonic()

    def now(self) -> float:
        """The database's time. Raises RuntimeError before the first `sync`."""
        if self._offset_s is None:
            raise RuntimeError("the database clock was never read")
        return time.monotonic() + self._offset_s


class ContextSigner:
    """Makes contexts that live 60 s."""

    def __init__(self, root: crypto.RootKey, clock: DatabaseClock) -> None:
        self._key = root.derive("ctx")
        self._clock = clock
        self._second = 0
        self._signed: dict[UUID, str] = {}

    def sign(self, *org_ids: UUID) -> str:
        """For one organization; for several only where a function is made for batches (`limner.enter_all`).

        Those of one organization are the same within a second, and made once.
        """
        second = int(self._clock.now())
        if len(org_ids) != 1:
            return self._sign(org_ids, second)
        if second != self._second:
            self._second, self._signed = second, {}
        (org_id,) = org_ids
        signed = self._signed.get(org_id)
        if signed is None:
            signed = self._signed[org_id] = self._sign(org_ids, second)
        return signed

    def _sign(self, org_ids: Collection[UUID], second: int) -> str:
        message = f"{KID}.{','.join(map(str, org_ids))}.{second + LIFE_S}"
        return f"{message}.{crypto.sign(self._key, message.encode()).hex()}"


def pads(root: crypto.RootKey) -> tuple[bytes, bytes]:
    """What the database needs to verify: the HMAC pads of the context key."""
    return crypto.hmac_pads(root.derive("ctx"))
