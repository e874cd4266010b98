"""Keys derived from one root key, each for one purpose, and the signatures made with them.

Derivation is HKDF-SHA256 (RFC 5869) with the purpose as its label, so that a key that leaks in one place is
useless in another.
"""

import base64
import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

BLOCK = 64  # SHA-256's block, in bytes: HMAC pads are this long (RFC 2104)
KID_BYTES = 2  # of a root key's name, which every sealed value begins with
NONCE_BYTES = 12  # the 96 bits that GCM is made for (NIST SP 800-38D, 8.2)
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class RootKey:
    """The installation's one secret (32 bytes or more). Never printed: its repr hides the value.

    `old`: root keys of before, which still open what was sealed under them, and are good for nothing else.
    """

    value: bytes
    old: tuple["RootKey", ...] = ()

    def __post_init__(self) -> None:
        if len(self.value) < 32:
            raise ValueError("the root key must hold at least 32 bytes")

    def __repr__(self) -> str:
        return "RootKey(…)"

    def derive(self, purpose: str, length: int = 32) -> bytes:
        """`length` bytes for one purpose, e.g. "ctx", "media-url" or "db:limner_api"."""
        kdf = HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=f"limner/{purpose}".encode())
        return kdf.derive(self.value)

    @property
    def kid(self) -> int:
        """Its name on what is sealed under it; says nothing of the key."""
        return int.from_bytes(self.derive("kid", KID_BYTES), "big")

    def password(self, role: str) -> str:
        """The database password of a run-time role: 43 URL-safe characters."""
        return base64.urlsafe_b64encode(self.derive(f"db:{role}")).decode().rstrip("=")


def new_root_key() -> str:
    """A fresh root key as text, for a file or an environment variable."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def parse_root_key(text: str) -> RootKey:
    """The key in `text` (URL-safe base64, or hex). Raises ValueError when it is neither or too short."""
    text = text.strip()
    try:
        return RootKey(bytes.fromhex(text))
    except ValueError:
        return RootKey(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def sign(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104)."""
    return hmac.digest(key, message, "sha256")


def same(left: bytes, right: bytes) -> bool:
    """Constant-time comparison."""
    return hmac.compare_digest(left, right)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class SealBroken(ValueError):
    """A sealed value does not open here: it was changed, moved from another row, cut, or sealed under another key."""


class Sealer:
    """Seals small secrets for one purpose: AES-256-GCM under a key of its own, bound to the row they are kept in.

    Sealed: key id (2 bytes, big-endian), nonce (12), ciphertext, tag (16). `bound` names the row, e.g. organization and
    id: it is authenticated with the purpose and the key id, so that a value copied into another row does not open.
    """

    def __init__(self, root: RootKey, purpose: str) -> None:
        self._purpose = purpose
        self.kid = root.kid
        """Of the key that seals."""
        self._keys = [(key.kid, AESGCM(key.derive(f"seal:{purpose}"))) for key in (root, *root.old)]

    def __repr__(self) -> str:
        return f"Sealer({self._purpose!r})"

    def seal(self, plain: bytes, *bound: object) -> bytes:
        """Another nonce each time: the same secret twice gives two values."""
        kid, aead = self._keys[0]
        nonce = secrets.token_bytes(NONCE_BYTES)
        return kid.to_bytes(KID_BYTES, "big") + nonce + aead.encrypt(nonce, plain, self._context(kid, bound))

    def seals_as(self, sealed: bytes) -> bool:
        """Whether a sealed value is under the root key that seals now."""
        return int.from_bytes(sealed[:KID_BYTES], "big") == self.kid

    def open(self, sealed: bytes, *bound: object) -> bytes:
        """What was sealed for this row. Raises SealBroken."""
        if len(sealed) < KID_BYTES + NONCE_BYTES + TAG_BYTES:
            raise SealBroken("too short to be a sealed value")
        kid = int.from_bytes(sealed[:KID_BYTES], "big")
        nonce, rest = sealed[KID_BYTES : KID_BYTES + NONCE_BYTES], sealed[KID_BYTES + NONCE_BYTES :]
        aeads = [aead for name, aead in self._keys if name == kid]
        if not aeads:
            raise SealBroken(f"sealed under the root key {kid}, which is not here")
        for aead in aeads:  # two root keys may have one name: 1 in 65,536 has
            with contextlib.suppress(InvalidTag):
                return aead.decrypt(nonce, rest, self._context(kid, bound))
        raise SealBroken("sealed for another row, or changed since")

    def _context(self, kid: int, bound: tuple[object, ...]) -> bytes:
        return "|".join([self._purpose, *map(str, bound), str(kid)]).encode()


def hmac_pads(key: bytes) -> tuple[bytes, bytes]:
    """The inner and outer pads of HMAC for a key of at most one block, so that SQL can finish the hash."""
    padded = key.ljust(BLOCK, b"\0")
    return bytes(b ^ 0x36 for b in padded), bytes(b ^ 0x5C for b in padded)
