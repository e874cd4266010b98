"""Which URLs of strangers could be asked at all, as far as their text tells. Opens no socket, and brings no HTTP client with it."""

from collections.abc import Collection

from limner.egress import addresses, urls
from limner.egress.answers import DestinationNotAllowed
from limner.egress.urls import Target
from limner.kit import origins
from limner.settings import Settings


class Destinations:
    """`allow_origins`: exact origins that may have any scheme, port and address; every other rule holds for them too.

    `own_hosts`: this installation's names, refused with all names below them; addresses among them count as networks.
    `own_networks`: its public addresses or prefixes. Raises ValueError for what is none of that.
    """

    def __init__(
        self, allow_origins: Collection[str], own_hosts: Collection[str], own_networks: Collection[str] = ()
    ) -> None:
        self._exceptions = frozenset(origins.normal(origin) for origin in allow_origins)
        own_addresses = {host for host in own_hosts if addresses.plain(host) is not None}
        self._own_hosts = frozenset(origins.host(host) for host in own_hosts if host not in own_addresses)
        self._own_networks = addresses.networks([*own_networks, *own_addresses])

    def check(self, url: str) -> None:
        """For endpoints that are being registered. Raises DestinationNotAllowed with words for whoever gave the URL."""
        self.parse(url)

    def parse(self, url: str) -> Target:
        """The URL as it will be asked. Raises DestinationNotAllowed."""
        target = urls.parse(url, self._exceptions)
        if any(target.host == own or target.host.endswith("." + own) for own in self._own_hosts):
            raise DestinationNotAllowed("the host is this installation's own")
        return target

    def allows(self, target: Target, resolved: Collection[str]) -> bool:
        """Whether every address that the target's name has may be connected to."""
        return target.origin in self._exceptions or all(
            addresses.allowed(address, self._own_networks) for address in resolved
        )


def of(settings: Settings) -> Destinations:
    """As the settings have it. The host of LIMNER_PUBLIC_URL is this installation's own."""
    own_hosts = [urls.read(settings.public_url).host] if settings.public_url else []
    return Destinations(settings.egress_allow_origins, own_hosts, settings.egress_own_networks)
