"""The adapters there are: each module of this folder (a package's `adapter`) that has an `ADAPTER`, and those that installed packages
name as entry points of the group `limner.adapters`.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import MappingProxyType

from limner.hub import providers
from limner.hub.providers.base import Adapter
from limner.hub.providers.kinds import AdapterKind, Tools

GROUP = "limner.adapters"
ATTRIBUTE = "ADAPTER"


class AdapterInvalid(Exception):
    """An installed adapter cannot be used; the message names it. A process that needs adapters does not start with it."""


@cache
def all_kinds() -> Mapping[str, AdapterKind]:
    """By name, limner's own first. Raises AdapterInvalid: for what is no adapter, what cannot be loaded, and a name that is taken."""
    found: dict[str, AdapterKind] = {}
    for where, kind in (*_own(), *_installed()):
        if not isinstance(kind, AdapterKind):
            raise AdapterInvalid(f"{where} is no AdapterKind")
        if kind.name in found:
            raise AdapterInvalid(f"{where}: there is an adapter {kind.name} already")
        found[kind.name] = kind
    return MappingProxyType(found)


def adapters(tools: Tools) -> dict[str, Adapter]:
    """Those that do jobs, made for one worker. Raises AdapterInvalid."""
    return {name: kind.make(tools) for name, kind in all_kinds().items()}


def _own() -> Iterator[tuple[str, object]]:
    for found in pkgutil.iter_modules(providers.__path__):
        name = f"{providers.__name__}.{found.name}" + (".adapter" if found.ispkg else "")
        if found.ispkg and find_spec(name) is None:
            continue
        kind = getattr(importlib.import_module(name), ATTRIBUTE, None)
        if kind is not None:
            yield name, kind


def _installed() -> Iterator[tuple[str, object]]:
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            kind: object = point.load()
        except Exception as error:
            raise AdapterInvalid(f"the adapter {point.name} ({point.value}) cannot be loaded: {error}") from error
        yield f"the adapter {point.name} ({point.value})", kind
