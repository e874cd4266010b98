"""Where a client puts its bytes: a URL and the headers it must send, good for one upload of one size and one checksum.

With an S3-like store the client writes into the bucket itself, by a presigned URL (`media.presigning`); with every other store it
writes to limner (`media.receiving`).
"""

import base64
import re
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from limner.kit import crypto, ids
from limner.media.uploads import Upload, raw_key

MEDIA_TYPE = "application/octet-stream"
RAW_KEY = re.compile(r"q/([0-9a-f-]{36})/([0-9a-f-]{36})")


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a client sends the bytes with: a PUT to `url`, with these headers."""

    url: str
    headers: dict[str, str]


class Tickets(Protocol):
    """Issues them."""

    def issue(self, org_id: UUID, upload: Upload) -> Ticket:
        """For a pending upload, until it expires."""


class TokenTickets:
    """`PUT /media/q/<organization>/<upload>?e=<expiry>&s=<signature>`, limner's own.

    The signature holds for the key, the length, the SHA-256 and the expiry: who changes one of them has no URL.
    """

    def __init__(self, root: crypto.RootKey, base_url: str) -> None:
        self._key = root.derive("upload-url")
        self._base_url = base_url

    def issue(self, org_id: UUID, upload: Upload) -> Ticket:
        """For a pending upload, until it expires."""
        key, expiry = raw_key(org_id, upload.id), int(upload.expires_at.timestamp())
        signature = self._signature(key, upload.size_bytes, upload.sha256, expiry)
        return Ticket(
            f"{self._base_url}/media/{key}?e={expiry}&s={signature}",
            {
                "Content-Type": MEDIA_TYPE,
                "Content-Length": str(upload.size_bytes),
                "Content-Digest": f"sha-256=:{base64.b64encode(upload.sha256).decode()}:",
                "If-None-Match": "*",
            },
        )

    def names(self, key: str, size: int, sha256: bytes, expiry_text: str, signature: str) -> tuple[UUID, UUID] | None:
        """The organization and upload that a URL and its headers are for, or None when anything of them was changed."""
        parts = RAW_KEY.fullmatch(key)
        if parts is None or not (expiry_text.isascii() and expiry_text.isdigit() and len(expiry_text) <= 12):
            return None
        wanted = self._signature(key, size, sha256, int(expiry_text))
        org_id, upload_id = ids.parse(parts[1]), ids.parse(parts[2])
        if org_id is None or upload_id is None or not crypto.same(wanted.encode(), signature.encode()):
            return None
        return org_id, upload_id

    def _signature(self, key: str, size: int, sha256: bytes, expiry: int) -> str:
        message = f"PUT\n{key}\n{size}\n{sha256.hex()}\n{expiry}".encode()
        return base64.urlsafe_b64encode(crypto.sign(self._key, message)[:24]).decode()
