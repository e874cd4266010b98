"""Providers that are known by name: where they are, what of theirs may be sold, and what it cost at their own lists on some day.

Data, read strictly from known_providers.toml, and installed as rows that are an operator's from then on.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, get_args

from limner.hub.pricing import BY_TIME, PriceUnit
from limner.hub.providers import configuration, registry
from limner.hub.providers.openai_compatible import offers
from limner.kit import money

FILE = Path(__file__).with_name("known_providers.toml")
MICRO = 1_000_000
PROVIDER = {"name": str, "display_name": str, "adapter": str, "base_url": str}
MODEL = {
    "name": str,
    "display_name": str,
    "kind": str,
    "provider_model": str,
    "unit": str,
    "source": str,
    "read_on": date,
}
BY_TOKENS = ("input_usd", "cached_usd", "output_usd")
Outcome = Literal["installed", "kept", "overwritten", "skipped"]


class KnownInvalid(ValueError):
    """An entry of the file is not complete, or not right; the message names it."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One thing to sell. `usd`: for a unit, or for a million tokens read, read from a cache, and written."""

    name: str
    display_name: str
    kind: offers.Kind
    provider_model: str
    unit: PriceUnit
    usd: tuple[Decimal, ...]
    source: str
    read_on: date
    max_output_tokens: int = 4096
    config: Mapping[str, Any] = field(default_factory=dict)

    def facts(self, family: str, credits_per_usd: int) -> dict[str, Any]:
        """The facts of `catalog.put_model`, sold at its list price."""
        prices = [math.ceil(price * credits_per_usd * money.MC) for price in self.usd]
        by_unit: dict[str, Any] = {"price_mc": prices[0]}
        if self.unit == "tokens":
            names = ("price_mc", "input_price_mc", "cached_price_mc", "output_price_mc")
            by_unit = dict(zip(names, (0, *prices), strict=True))
        return {
            "name": self.name, "display_name": self.display_name, "kind": self.kind, "family": family, "price_unit": self.unit,
            "input_schema": offers.SCHEMAS[self.kind], "capabilities": offers.capabilities(self.kind),
            "expected_s": offers.EXPECTED_S[self.kind], "max_output_tokens": self.max_output_tokens, "price_source": self.source,
            "priced_on": self.read_on, **by_unit,
        }  # fmt: skip

    def costs(self) -> dict[str, Any]:
        """What `catalog.put_route` is told of its costs."""
        micro = tuple(math.ceil(price * MICRO) for price in self.usd)
        if self.unit == "tokens":
            return {"token_costs": (micro[0], micro[1], micro[2])}
        return {"cost_micro_usd": 0 if self.unit in BY_TIME else micro[0]}

    @property
    def price(self) -> str:
        """In words, in dollars."""
        told = " / ".join(f"{price.normalize():f}" for price in self.usd)
        return (
            f"${told} a million tokens"
            if self.unit == "tokens"
            else f"${told} a{'n' if self.unit == 'output' else ''} {self.unit}"
        )


@dataclass(frozen=True, slots=True)
class KnownProvider:
    name: str
    display_name: str
    adapter: str
    base_url: str
    config: Mapping[str, Any]
    models: Sequence[KnownModel]

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of `catalog.put_provider`."""
        return {
            "name": self.name, "display_name": self.display_name, "adapter": self.adapter, "base_url": self.base_url,
            "config": dict(self.config),
        }  # fmt: skip

    @property
    def is_served(self) -> bool:
        """Whether this release has its adapter."""
        return self.adapter in registry.all_kinds()


def load(text: str | None = None) -> dict[str, KnownProvider]:
    """Those of the file, or of this text, by name. Raises KnownInvalid."""
    try:
        value = tomllib.loads(FILE.read_text() if text is None else text)
    except tomllib.TOMLDecodeError as error:
        raise KnownInvalid(f"not TOML: {error}") from None
    _only(value, {"provider"}, "the file")
    found = [_provider(entry) for entry in value.get("provider", [])]
    if len({one.name for one in found}) < len(found):
        raise KnownInvalid("two providers of one name")
    return {one.name: one for one in found}


def _provider(entry: Mapping[str, Any]) -> KnownProvider:
    where = f"provider {entry.get('name')}"
    _only(entry, {*PROVIDER, "config", "model"}, where)
    _typed(entry, PROVIDER, where)
    if not entry["base_url"].startswith("https://"):
        raise KnownInvalid(f"{where}: base_url must be https")
    models = [_model(one) for one in entry.get("model", [])]
    config = entry.get("config", {})
    found = KnownProvider(entry["name"], entry["display_name"], entry["adapter"], entry["base_url"], config, models)
    configuration.check(found.adapter, found.base_url, found.config)
    for model in models:
        configuration.check(found.adapter, found.base_url, {**found.config, **model.config})
    return found


def _model(entry: Mapping[str, Any]) -> KnownModel:
    where = f"model {entry.get('name')}"
    _only(entry, {*MODEL, *BY_TOKENS, "usd", "max_output_tokens", "config"}, where)
    _typed(entry, MODEL, where)
    if entry["kind"] not in offers.SCHEMAS or entry["unit"] not in get_args(PriceUnit):
        raise KnownInvalid(f"{where}: an unknown kind or unit")
    if not entry["source"].startswith("https://"):
        raise KnownInvalid(f"{where}: source must be where its price was read")
    names = BY_TOKENS if entry["unit"] == "tokens" else ("usd",)
    if {"usd", *BY_TOKENS} & set(entry) != set(names):
        raise KnownInvalid(f"{where}: its prices are {', '.join(names)}")
    prices = tuple(_dollars(entry[name], where) for name in names)
    return KnownModel(
        entry["name"], entry["display_name"], entry["kind"], entry["provider_model"], entry["unit"], prices, entry["source"],
        entry["read_on"], entry.get("max_output_tokens", 4096), entry.get("config", {}),
    )  # fmt: skip


def _dollars(value: Any, where: str) -> Decimal:
    """A text: floats do not carry money."""
    try:
        found = Decimal(value) if isinstance(value, str) else Decimal("NaN")
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or not 0 <= found <= 10_000:
        raise KnownInvalid(f'{where}: a price is a text such as "0.15"')
    return found


def _typed(entry: Mapping[str, Any], fields: Mapping[str, type], where: str) -> None:
    for name, kind in fields.items():
        if not isinstance(entry.get(name), kind) or not entry[name]:
            raise KnownInvalid(f"{where}: {name} is missing, or of another kind")


def _only(entry: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(entry) - known):
        raise KnownInvalid(f"{where}: unknown {', '.join(unknown)}")
