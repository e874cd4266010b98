"""Which adapters there are, and what each says of a provider's address and configuration before anybody depends on them.

The same is read again at each call: rows may be older than this release.
"""

from collections.abc import Callable, Mapping
from typing import Any

from limner.hub.providers.base import ConfigInvalid
from limner.hub.providers.openai_compatible import config as openai_compatible

LOCAL_NUMBERS = ("time_limit_ms", "max_pixels", "timeout_s")


def check(adapter: str, base_url: str | None, config: Mapping[str, Any]) -> None:
    """Raises ConfigInvalid with the field that is wrong. An adapter that this release does not know has no say."""
    checker = ADAPTERS.get(adapter)
    if checker is not None:
        checker(base_url, config)


def _local(base_url: str | None, config: Mapping[str, Any]) -> None:
    if base_url is not None:
        raise ConfigInvalid("base_url: the local provider has no address")
    for name, value in config.items():
        if name not in LOCAL_NUMBERS:
            raise ConfigInvalid(f"config has unknown {name[:100]}; there are {', '.join(LOCAL_NUMBERS)}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (name == "timeout_s" and isinstance(value, float))) or value <= 0:
            raise ConfigInvalid(f"config.{name} must be a positive number")


def _openai(base_url: str | None, config: Mapping[str, Any]) -> None:
    openai_compatible.read(base_url, config)


ADAPTERS: dict[str, Callable[[str | None, Mapping[str, Any]], None]] = {"local": _local, "openai": _openai}
"""By the name that a provider's row gives its adapter; limner/worker.py makes them."""
KEYLESS = frozenset({"local"})
"""Adapters that ask nobody outside, and so need nobody's key."""
OWN_KEYS = frozenset({"openai"})
"""Adapters that hand an organization's own key (ProviderCall.own_key, Route.own_key) to the door with every request."""
