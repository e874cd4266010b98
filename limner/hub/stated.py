"""What a provider states about its own work: taken where it can be true, counted and left out where it cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from limner.hub import endings, pricing
from limner.hub.catalog import Route
from limner.hub.endings import Failure
from limner.hub.outputs import plain
from limner.hub.pricing import Tokens
from limner.hub.providers.base import ProviderError, ProviderResult, Usage
from limner.telemetry import logs, metrics

MAX_COST_MICRO_USD = 10**12  # a million dollars for one call is no cost but a mistake
MAX_QUANTITY = 10**12
MAX_USES = 20
MAX_WORD = 50
log = logs.get("stated")


@dataclass(frozen=True, slots=True)
class Bill:
    """What a call consumed and cost, as far as it was stated. `charged` False: nothing that came says that it cost anything."""

    usage: tuple[Usage, ...]
    cost_micro_usd: int
    charged: bool

    @property
    def of_failure(self) -> int | None:
        """The cost of a call whose answer was of no use; None where nothing says so."""
        return self.cost_micro_usd if self.charged else None


def bill(result: ProviderResult | ProviderError, route: Route, facts: Mapping[str, Any]) -> Bill:
    """Read off an answer, useful or not, or off an error that came with a bill."""
    used = usage(result, route, facts)
    cost = cost_micro_usd(result, route, used, facts)
    told = (
        _is_count(getattr(result, "cost_micro_usd", None), MAX_COST_MICRO_USD)
        or endings.stated_tokens(used) is not None
    )
    return Bill(used, cost, told or bool(getattr(result, "outputs", ())))


def failure(error: ProviderError, route: Route, facts: Mapping[str, Any]) -> Failure:
    """What an adapter's error means for the run."""
    return replace(endings.failed(error), cost_micro_usd=bill(error, route, facts).of_failure)


def cost_micro_usd(
    result: ProviderResult | ProviderError, route: Route, used: Sequence[Usage], facts: Mapping[str, Any]
) -> int:
    """What the provider says it cost, where that can be true; else by the route's own figures. `used`: as from `usage`."""
    stated: object = getattr(result, "cost_micro_usd", None)
    otherwise = pricing.cost_micro_usd(route, endings.stated_tokens(used) or Tokens(0, 0, 0))
    if stated is None:
        return otherwise
    if _is_count(stated, MAX_COST_MICRO_USD):
        return stated
    log.error("cost.absurd", provider=route.provider, stated=repr(stated)[:100], **facts)
    metrics.ABSURD_COSTS.labels(route.provider).inc()
    return otherwise


def usage(result: ProviderResult | ProviderError, route: Route, facts: Mapping[str, Any]) -> tuple[Usage, ...]:
    """What the provider says it consumed, as far as that can be true: what is sold by tokens is charged by it. `facts`: for the log."""
    try:
        words = [
            (plain(use.kind, MAX_WORD), use.quantity, plain(use.unit, MAX_WORD)) for use in result.usage[:MAX_USES]
        ]
    except (AttributeError, TypeError):  # an adapter's mistake is no reason to lose what was paid for
        words = [("unreadable", -1, "")]
    absurd = [kind for kind, quantity, _ in words if not _is_count(quantity, MAX_QUANTITY)]
    if absurd:  # what was said instead is a stranger's text, and stays out of the log
        log.error("usage.absurd", provider=route.provider, kinds=absurd, **facts)
        metrics.ABSURD_USAGE.labels(route.provider).inc()
    return tuple(Usage(*word) for word in words if word[0] not in absurd)


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
