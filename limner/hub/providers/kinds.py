"""What an adapter's module says of itself: one `ADAPTER`, by which limner finds it, checks its rows and makes it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from limner.db.context import DatabaseClock
from limner.egress.credentials import BEARER, KeyForm
from limner.egress.fixed import FixedDoor
from limner.egress.untrusted import UntrustedDoor
from limner.hub.providers.base import Adapter, CallClass
from limner.kit.cpu import CpuPool


@dataclass(frozen=True, slots=True)
class Tools:
    """What a process has for its adapters: the way out to providers, processes of its own for work on a CPU, the time, and the way
    out to addresses that providers name."""

    door: FixedDoor
    pool: CpuPool
    clock: DatabaseClock
    strangers: UntrustedDoor


@dataclass(frozen=True, slots=True)
class AdapterKind:
    """One kind of provider.

    `name`: what a provider's row calls it. `kinds`: of models that it can serve. `check` raises ConfigInvalid for an address and a
    configuration that cannot work. `make`: what does jobs, in a worker. `answering`: what answers calls of /v1 (a chat.Answering),
    None where it answers none. `list_models`: which models a server has, by address and configuration; raises ProviderError.
    `default_base_url`: where a row without an address means. `auth`: how its servers want their key, which the door attaches.
    `own_keys`: whether it hands an organization's own key (ProviderCall.own_key, Route.own_key) to the door with every request. `keyless`:
    it asks nobody outside, and so needs nobody's key.
    """

    name: str
    call_class: CallClass
    kinds: frozenset[str]
    check: Callable[[str | None, Mapping[str, Any]], None]
    make: Callable[[Tools], Adapter]
    answering: Callable[[Tools], Any] | None = None
    list_models: Callable[[FixedDoor, str | None, Mapping[str, Any]], Awaitable[list[str]]] | None = None
    default_base_url: str | None = None
    auth: KeyForm = BEARER
    own_keys: bool = False
    keyless: bool = False
