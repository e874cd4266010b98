"""The doors as the settings make them: one of each for a process."""

from limner.egress import destinations
from limner.egress.fixed import FixedDoor
from limner.egress.own_keys import OwnKeys
from limner.egress.untrusted import UntrustedDoor
from limner.kit.crypto import RootKey
from limner.settings import Settings


def fixed(settings: Settings, root: RootKey | None = None) -> FixedDoor:
    """Door 1, with the operator's hosts, origins and keys; with the root key organizations' own, too."""
    keys = {origin: key.get_secret_value() for origin, key in settings.provider_keys.items()}
    return FixedDoor(
        settings.egress_hosts, settings.egress_plain_origins, keys, None if root is None else OwnKeys(root)
    )


def untrusted(settings: Settings) -> UntrustedDoor:
    """Door 2."""
    return UntrustedDoor(destinations.of(settings))
