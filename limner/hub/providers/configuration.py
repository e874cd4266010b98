"""What adapters say of a provider's row before anybody depends on it: its address, its configuration, the kinds of models it serves.

The same is read again at each call: rows may be older than this release. An adapter that this release does not know has no say.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from limner.hub.providers import registry
from limner.hub.providers.base import ConfigInvalid


def check(adapter: str, base_url: str | None, config: Mapping[str, Any]) -> None:
    """Raises ConfigInvalid with the field that is wrong."""
    kind = registry.all_kinds().get(adapter)
    if kind is not None:
        kind.check(base_url or kind.default_base_url, config)


def check_kind(adapter: str, model_kind: str) -> None:
    """Raises ConfigInvalid for a kind of models that no server of this adapter serves."""
    kind = registry.all_kinds().get(adapter)
    if kind is not None and model_kind not in kind.kinds:
        raise ConfigInvalid(f"the adapter {adapter} serves no {model_kind}; it serves {', '.join(sorted(kind.kinds))}")


def address(adapter: str, base_url: str | None) -> str | None:
    """Where a provider is: as its row says, else where its adapter's servers are."""
    kind = registry.all_kinds().get(adapter)
    return base_url if base_url or kind is None else kind.default_base_url


@cache
def with_own_keys() -> list[str]:
    """The adapters that hand an organization's own key to the door with every request."""
    return sorted(kind.name for kind in registry.all_kinds().values() if kind.own_keys)


@cache
def keyless() -> frozenset[str]:
    """The adapters that ask nobody outside, and so need nobody's key."""
    return frozenset(kind.name for kind in registry.all_kinds().values() if kind.keyless)
