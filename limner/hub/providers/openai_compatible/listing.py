"""Which models a server says it has, and at what prices, where it says so: an operator's questions, before customers ask theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from limner.egress.fixed import FixedDoor
from limner.hub.providers import asking
from limner.hub.providers.base import ProviderError
from limner.hub.providers.openai_compatible import errors, exchange
from limner.hub.providers.openai_compatible.config import Config

TIMEOUT_S = 15.0
MAX_BYTES = 4 * 1024 * 1024
MAX_MODELS = 1000
MAX_NAME = 200


MILLION = 1_000_000
MOST_USD = 10_000


@dataclass(frozen=True, slots=True)
class Priced:
    """A model of a list that has prices: dollars for a million tokens read, read from a cache, and written; the longest answer."""

    name: str
    display_name: str
    usd: tuple[Decimal, Decimal, Decimal]
    max_output_tokens: int | None


async def list_prices(door: FixedDoor, config: Config) -> dict[str, Priced]:
    """The models of `GET /models` whose prices are told, by name. Raises ProviderError as a call does."""
    priced = (_priced(item) for item in await _items(door, config))
    return {one.name: one for one in priced if one is not None}


async def list_models(door: FixedDoor, config: Config) -> list[str]:
    """The names of `GET /models`, sorted, printable ones alone. Raises ProviderError as a call does."""
    names = {item.get("id") for item in await _items(door, config)}
    return sorted(n for n in names if isinstance(n, str) and n.isprintable() and 0 < len(n) <= MAX_NAME)[:MAX_MODELS]


async def _items(door: FixedDoor, config: Config) -> list[dict[str, Any]]:
    answer = await exchange.send(door, config, "GET", "/models", timeout_s=TIMEOUT_S, max_bytes=MAX_BYTES)
    if answer.status != 200:
        raise errors.failure(answer.status, answer.headers, errors.read_told(answer.body), ())
    found = asking.read_object(answer.body).get("data")
    if not isinstance(found, list):
        raise ProviderError("provider_answer_invalid", "The provider's list of models is not understood.", "retryable")
    return [item for item in found if isinstance(item, dict)]


def _priced(item: Mapping[str, Any]) -> Priced | None:
    """OpenRouter's way: `pricing` with dollars for one token, as texts; -1 where the price depends."""
    name, pricing = item.get("id"), item.get("pricing")
    if not isinstance(name, str) or not name.isprintable() or not isinstance(pricing, dict):
        return None
    read, written = _dollars(pricing.get("prompt")), _dollars(pricing.get("completion"))
    if read is None or written is None or len(name) > MAX_NAME:
        return None
    cached = _dollars(pricing.get("input_cache_read"))
    told, limits = item.get("name"), item.get("top_provider")
    longest = limits.get("max_completion_tokens") if isinstance(limits, dict) else None
    shown = told if isinstance(told, str) and told.isprintable() and 0 < len(told) <= MAX_NAME else name
    bounded = longest if type(longest) is int and 0 < longest <= MILLION else None
    return Priced(name, shown, (read, read if cached is None else cached, written), bounded)


def _dollars(value: Any) -> Decimal | None:
    """For a million tokens."""
    if not isinstance(value, str):
        return None
    try:
        found = Decimal(value) * MILLION
    except InvalidOperation:
        return None
    return found if found.is_finite() and 0 <= found <= MOST_USD else None
