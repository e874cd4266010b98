"""Signed URLs for stored objects: anybody who has one may read that object until it expires, nothing else."""

import base64
from urllib.parse import quote

from limner.db.context import DatabaseClock
from limner.kit import crypto

ROUND_S = 3600  # expiry is rounded up to the hour, so that a re-read within it gives the same, cacheable URL
YEAR_S = 365 * 86_400
LASTING_ROUND_S = 30 * 86_400


class MediaUrls:
    """Signs and verifies `/media/<key>?e=<expiry>&s=<signature>`."""

    def __init__(self, root: crypto.RootKey, clock: DatabaseClock, base_url: str, life_s: int) -> None:
        self._key = root.derive("media-url")
        self._clock = clock
        self._base_url = base_url
        self._life_s = life_s

    def expiry(self) -> int:
        """Epoch seconds at which a URL signed now ends: at least `life_s` away."""
        return -(-int(self._clock.now() + self._life_s) // ROUND_S) * ROUND_S

    def sign(self, key: str) -> str:
        expiry = self.expiry()
        return f"{self._base_url}/media/{quote(key)}?e={expiry}&s={self._signature(key, expiry)}"

    def sign_lasting(self, key: str) -> str:
        """For what is shown in pages: a URL that lives a year at least, and is the same for about a month."""
        expiry = -(-int(self._clock.now() + YEAR_S) // LASTING_ROUND_S) * LASTING_ROUND_S
        return f"{self._base_url}/media/{quote(key)}?e={expiry}&s={self._signature(key, expiry)}"

    def remaining_s(self, key: str, expiry_text: str, signature: str) -> int | None:
        """Seconds the URL still lives, or None when it is forged or over."""
        if not (expiry_text.isascii() and expiry_text.isdigit() and len(expiry_text) <= 12):
            return None
        expiry = int(expiry_text)
        if not crypto.same(self._signature(key, expiry).encode(), signature.encode()):
            return None
        remaining = expiry - int(self._clock.now())
        return remaining if remaining > 0 else None

    def _signature(self, key: str, expiry: int) -> str:
        digest = crypto.sign(self._key, f"{expiry}\n{key}".encode())[:18]
        return base64.urlsafe_b64encode(digest).decode()
