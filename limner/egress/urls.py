"""URLs, read once and strictly. What is sent is built from what was read: no second parser gets to see the text."""

import re
import unicodedata
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urljoin

import idna

from limner.egress.answers import DestinationNotAllowed
from limner.kit import origins

MAX_CHARACTERS = 2_048
PORTS = (443, 8443)
# Special-use names that mean something inside of a network only (RFC 6761, 6762, 7686, 8375; ICANN for `internal`).
PRIVATE_ZONES = ("localhost", "local", "internal", "home.arpa", "onion")

_SHAPE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]+)(/[^?#]*)?(\?[^#]*)?(?:#.*)?")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([1-9][0-9]{0,4}))?")
_AS_IT_STANDS = "%!$&'()*+,/:;=?@[]~"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes. `host`: a name in ASCII or an address, lower case. `path`: with its query, percent-encoded."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        return origins.of(self.scheme, self.host, self.port)

    @property
    def url(self) -> str:
        """The whole URL as it goes on the wire; the port only where it is not the scheme's."""
        origin = self.origin.removesuffix(f":{origins.PORTS[self.scheme]}")
        return origin + self.path


@lru_cache(maxsize=256)
def read(url: str) -> Target:
    """http or https, a host, perhaps a port and a path; the fragment goes.

    Raises DestinationNotAllowed for what is no such URL, and for everything that parsers are known to disagree about:
    user names, backslashes, control characters, white space, empty ports, percent signs in hosts, odd forms of addresses.
    """
    if not 0 < len(url) <= MAX_CHARACTERS:
        raise DestinationNotAllowed(f"a URL has 1 to {MAX_CHARACTERS} characters")
    if "\\" in url or any(unicodedata.category(character)[0] in "CZ" for character in url):
        raise DestinationNotAllowed("the URL contains characters that do not belong in one")
    found = _SHAPE.fullmatch(url)
    if found is None or found[1].lower() not in origins.PORTS:
        raise DestinationNotAllowed("not an http(s) URL")
    scheme, path = found[1].lower(), (found[3] or "/") + (found[4] or "")
    host, port = _authority(found[2])
    target = Target(scheme, host, port or origins.PORTS[scheme], quote(path, safe=_AS_IT_STANDS))
    if len(target.url) > MAX_CHARACTERS:
        raise DestinationNotAllowed(f"the URL is longer than {MAX_CHARACTERS} characters once it is encoded")
    return target


def parse(url: str, exceptions: Container[str] = ()) -> Target:
    """A stranger's URL: https, port 443 or 8443, a name with a dot that is not special-use; or one of the exact origins
    in `exceptions`, which may have any scheme, port and address.

    Raises DestinationNotAllowed; its words say which rule, and may be shown to whoever gave the URL.
    """
    target = read(url)
    if target.origin in exceptions:
        return target
    if target.scheme != "https":
        raise DestinationNotAllowed("only https is allowed")
    if target.port not in PORTS:
        raise DestinationNotAllowed("only the ports 443 and 8443 are allowed")
    if origins.is_address(target.host):
        raise DestinationNotAllowed("addresses are not allowed: give a name")
    if "_" in target.host or "." not in target.host:
        raise DestinationNotAllowed("the host is not a public name")
    if any(target.host.endswith("." + zone) for zone in PRIVATE_ZONES):
        raise DestinationNotAllowed("the host is not a public name")
    return target


def joined(target: Target, location: str) -> str:
    """Where a redirect of `target` leads (RFC 9110 §10.2.2), as text that is still to be parsed.

    Raises DestinationNotAllowed for what cannot be joined, or only after leaving characters out, as `urljoin` does.
    """
    if "\\" in location or any(unicodedata.category(character)[0] in "CZ" for character in location):
        raise DestinationNotAllowed("the redirect contains characters that do not belong in a URL")
    try:
        return urljoin(target.url, location)
    except ValueError:
        raise DestinationNotAllowed("the redirect is not a URL") from None


def _authority(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise DestinationNotAllowed("user names and passwords are not allowed in a URL")
    found = _AUTHORITY.fullmatch(text)
    if found is None or int(found[2] or 1) > 65_535:
        raise DestinationNotAllowed("not a host with or without a port")
    try:
        return origins.host(_ascii(found[1])), int(found[2]) if found[2] else None
    except ValueError:
        raise DestinationNotAllowed("neither a name nor an address") from None


def _ascii(host: str) -> str:
    """The name in ASCII (IDNA 2008 after the mapping of UTS 46); the caller checks it again, since the mapping makes
    digits, dots and letters of what looked like none. Raises ValueError (`IDNAError` is one)."""
    if host.startswith("[") or (host.isascii() and "xn--" not in host.lower()):
        return host
    return idna.encode(host, uts46=True, std3_rules=True).decode("ascii")
