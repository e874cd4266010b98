"""The door for addresses that nobody vouches for, as far as it is open yet: to origins an operator allows, and to nobody else.

What could be sent to once is told when it is registered (`check`); what is not on the list is refused when it is sent.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from limner.settings import Settings

MAX_URL = 2048
PORTS = frozenset({None, 443, 8443})
NAME = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]", re.IGNORECASE
)
TOTAL_S = 15.0
CONNECT_S = 3.0
MAX_ANSWER_BYTES = 64 * 1024


class EgressError(Exception):
    """`code`: destination_not_allowed, timeout or connect_failed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` by lower-case name; `body`: at most MAX_ANSWER_BYTES of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class UntrustedDoor:
    """`allow_origins`: exact scheme://host:port."""

    def __init__(self, allow_origins: frozenset[str]) -> None:
        self._allow = allow_origins

    @classmethod
    def of(cls, settings: Settings) -> "UntrustedDoor":
        return cls(settings.egress_allow_origins)

    def check(self, url: str) -> None:
        """Raises EgressError destination_not_allowed: not https to a public host name on a usual port, nor an allowed origin."""
        if not (self._allowed(url) or _public(url)):
            raise EgressError("destination_not_allowed", "must be https, to a public host name, port 443 or 8443")

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Answer:
        """One request, no redirects, no proxies, no cookies. Raises EgressError."""
        if not self._allowed(url):
            raise EgressError("destination_not_allowed", "not an allowed origin")
        limits = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=limits, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as http,
                http.post(url, data=body, headers=dict(headers), allow_redirects=False) as got,
            ):
                read = await got.content.read(MAX_ANSWER_BYTES)
                return Answer(got.status, {name.lower(): value for name, value in got.headers.items()}, read)
        except TimeoutError:
            raise EgressError("timeout", "no answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EgressError("connect_failed", type(error).__name__) from None

    def _allowed(self, url: str) -> bool:
        return "/".join(url.split("/", 3)[:3]) in self._allow and "@" not in url and "\\" not in url


def _public(url: str) -> bool:
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or any(c in url for c in " \\@"):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme == "https" and port in PORTS and NAME.fullmatch(parts.hostname or "") is not None
