"""How a receiver knows that a delivery is limner's: Standard Webhooks, and the older pair of headers beside it.

Signed is `{webhook-id}.{webhook-timestamp}.{body}`, by HMAC-SHA256 (`v1`) with every secret that is live, so that nothing
breaks while a secret is rotated, and by ed25519 (`v1a`) where the app asked for it. `X-Webhook-Signature` is the hex
HMAC-SHA256 of `{timestamp}.{body}` under the newest secret alone. Source: the Standard Webhooks specification 1.0.
"""

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from limner.kit import crypto

SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"  # noqa: S105  (what a secret's text begins with)
PUBLIC_PREFIX = "whpk_"
ID_PREFIX = "msg_"
TOLERANCE_S = 300


@dataclass(frozen=True, slots=True)
class Keys:
    """What an endpoint's deliveries are signed with: live secrets, newest first, and the ed25519 seed if it has one."""

    secrets: tuple[bytes, ...]
    seed: bytes | None = None

    def __repr__(self) -> str:
        return "Keys(…)"


def new_secret() -> bytes:
    """256 random bits: a secret, or the seed of an ed25519 key."""
    return secrets.token_bytes(SECRET_BYTES)


def secret_text(secret: bytes) -> str:
    """As receivers' libraries take it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def read_secret(text: str) -> bytes:
    """The other way round. Raises ValueError."""
    return base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)


def public_key(seed: bytes) -> bytes:
    """The 32 bytes that verify what the seed signs (RFC 8032)."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def public_text(key: bytes) -> str:
    return PUBLIC_PREFIX + base64.b64encode(key).decode()


def headers(keys: Keys, delivery_id: UUID, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one try: the id is the delivery's for ever, `timestamp` (epoch seconds) this try's."""
    message_id = f"{ID_PREFIX}{delivery_id}"
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [f"v1,{_base64(crypto.sign(secret, signed))}" for secret in keys.secrets]
    if keys.seed is not None:
        signatures.append(f"v1a,{_base64(Ed25519PrivateKey.from_private_bytes(keys.seed).sign(signed))}")
    older = crypto.sign(keys.secrets[0], f"{timestamp}.".encode() + body).hex()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
        "x-webhook-timestamp": str(timestamp),
        "x-webhook-signature": f"sha256={older}",
    }


def verify(candidates: Sequence[bytes], sent: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether one of the secrets signed this request (`v1`), not more than TOLERANCE_S ago or ahead.

    `sent`: headers by lower-case name.
    """
    stamp = sent.get("webhook-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12) or abs(now - int(stamp)) > TOLERANCE_S:
        return False
    signed = f"{sent.get('webhook-id', '')}.{stamp}.".encode() + body
    given = [part.removeprefix("v1,").encode() for part in sent.get("webhook-signature", "").split(" ")]
    expected = [_base64(crypto.sign(secret, signed)).encode() for secret in candidates]
    return any(crypto.same(right, one) for right in expected for one in given)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
