"""Keys derived from one root key, each for one purpose, and the signatures made with them.

Derivation is HKDF-SHA256 (RFC 5869) with the purpose as its label, so that a key that leaks in one place is
useless in another.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

BLOCK = 64  # SHA-256's block, in bytes: HMAC pads are this long (RFC 2104)


@dataclass(frozen=True, slots=True)
class RootKey:
    """The installation's one secret (32 bytes or more). Never printed: its repr hides the value."""

    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) < 32:
            raise ValueError("the root key must hold at least 32 bytes")

    def __repr__(self) -> str:
        return "RootKey(…)"

    def derive(self, purpose: str, length: int = 32) -> bytes:
        """`length` bytes for one purpose, e.g. "ctx", "media-url" or "db:limner_api"."""
        kdf = HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=f"limner/{purpose}".encode())
        return kdf.derive(self.value)

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


def hmac_pads(key: bytes) -> tuple[bytes, bytes]:
    """The inner and outer pads of HMAC for a key of at most one block, so that SQL can finish the hash."""
    padded = key.ljust(BLOCK, b"\0")
    return bytes(b ^ 0x36 for b in padded), bytes(b ^ 0x5C for b in padded)
