"""Organizations' own keys at providers: sealed wherever they rest, opened here alone, for the origin they were given for."""

import re
from dataclasses import dataclass, field
from uuid import UUID

from limner.egress.answers import EgressError
from limner.kit import crypto
from limner.kit.crypto import RootKey, SealBroken, Sealer
from limner.telemetry import logs

PURPOSE = "byok"
MIN_LENGTH, MAX_LENGTH = 12, 512
KEY = re.compile(rf"[!-~]{{{MIN_LENGTH},{MAX_LENGTH}}}", re.ASCII)
SHOWN = 4
FINGERPRINT_BYTES = 8


class OwnKeyUnusable(EgressError):
    """The organization's key does not open for this origin: it was changed, moved from another row, or the provider moved."""

    code = "own_key_unusable"

    def __init__(self, words: str = "the organization's own key cannot be used here") -> None:
        super().__init__(words, sent=False)


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A key as its row keeps it. Not one of its fields is secret, and none of its bytes is shown."""

    org_id: UUID
    provider_id: UUID
    id: UUID
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A key that was just sealed, and what may be told of it."""

    key: SealedKey
    kid: int
    last4: str
    fingerprint: str


class OwnKeys:
    """Seals keys, and opens them for the door. Whatever passes in clear is kept out of this process's log, by value."""

    def __init__(self, root: RootKey) -> None:
        self._sealer = Sealer(root, PURPOSE)
        self._mark = root.derive("byok-fingerprint")

    @property
    def kid(self) -> int:
        """Of the root key that seals now."""
        return self._sealer.kid

    def seal(self, org_id: UUID, provider_id: UUID, row_id: UUID, origin: str, key: str) -> Sealed:
        """For this row and this origin. Raises ValueError, without a word of the key, for what is no key."""
        if not KEY.fullmatch(key):
            raise ValueError(f"a key is {MIN_LENGTH} to {MAX_LENGTH} visible ASCII characters, without spaces")
        logs.hide(key)
        sealed = self._sealer.seal(key.encode(), org_id, provider_id, row_id, origin)
        mark = crypto.sign(self._mark, f"{org_id}|{key}".encode())[:FINGERPRINT_BYTES].hex()
        return Sealed(SealedKey(org_id, provider_id, row_id, sealed), self.kid, key[-SHOWN:], mark)

    def resealed(self, key: SealedKey, origin: str) -> SealedKey:
        """The same under the present root key. Raises OwnKeyUnusable."""
        bound = (key.org_id, key.provider_id, key.id, origin)
        again = self._sealer.seal(self._opened(key, origin).encode(), *bound)
        return SealedKey(key.org_id, key.provider_id, key.id, again)

    def opened(self, key: SealedKey, origin: str) -> str:
        """In clear, for a request to this origin: the door's business and nobody else's. Raises OwnKeyUnusable."""
        text = self._opened(key, origin)
        logs.hide(text)
        return text

    def _opened(self, key: SealedKey, origin: str) -> str:
        try:
            return self._sealer.open(key.sealed, key.org_id, key.provider_id, key.id, origin).decode()
        except SealBroken:
            raise OwnKeyUnusable from None
