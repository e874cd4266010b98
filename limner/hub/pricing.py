"""What a request costs, from the parsed request and nothing else; all amounts in milli-credits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

PriceUnit = Literal["output", "job", "tokens", "second", "minute"]
OnDisconnect = Literal["abort", "drain", "estimate"]
"""When nobody listens any more: end the provider's answer and charge what was written; read it to its end and charge what the
provider counted; or end it and charge the estimate of a whole answer, for providers that go on, and bill, all the same."""
MILLION = 1_000_000
BY_TIME: Mapping[str, int] = {"second": 1, "minute": 60}
"""Units of recordings, in seconds. Seconds that have begun are counted, of a minute the part that was used."""
MAX_OUTPUTS_FIELD = "num_outputs"


def units(price_unit: PriceUnit, parsed: Mapping[str, Any]) -> int:
    """How many units a request asks for: its `num_outputs` where the model is priced by output, else one."""
    return int(parsed.get(MAX_OUTPUTS_FIELD, 1)) if price_unit == "output" else 1


def quote_mc(unit_price_mc: int, price_unit: PriceUnit, parsed: Mapping[str, Any]) -> int:
    """What is held: never less than what can be charged."""
    return unit_price_mc * units(price_unit, parsed)


def charge_mc(unit_price_mc: int, delivered: int, hold_mc: int) -> int:
    """What `delivered` valid stored outputs cost: never above the hold, nothing for nothing.

    Right for both units: a request priced by the job holds one unit, which any output uses up.
    """
    return min(unit_price_mc * max(delivered, 0), hold_mc)


def part_mc(price_mc: int, percent: int) -> int:
    """A part of a price, rounded up to a whole milli-credit."""
    return -(-price_mc * percent // 100)


def time_mc(price_mc: int, unit: str, seconds: int) -> int:
    """What so many seconds of a recording cost, rounded up to a whole milli-credit. `unit`: of BY_TIME."""
    return -(-price_mc * seconds // BY_TIME[unit])


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a call consumed: tokens read, how many of them came from a cache, and tokens written."""

    read: int
    cached: int
    written: int

    @property
    def all(self) -> int:
        """As providers count them against a limit."""
        return self.read + self.written


class TokenPrices(Protocol):
    """Milli-credits: of a call, and of a million tokens each."""

    @property
    def price_mc(self) -> int: ...

    @property
    def input_price_mc(self) -> int: ...

    @property
    def cached_price_mc(self) -> int: ...

    @property
    def output_price_mc(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Rates:
    """What a call cost when it was ordered, as TokenPrices."""

    price_mc: int
    input_price_mc: int
    cached_price_mc: int
    output_price_mc: int


class TokenCosts(Protocol):
    """Micro-dollars that the platform pays: for a call, and for a million tokens each."""

    @property
    def cost_micro_usd(self) -> int: ...

    @property
    def input_cost_micro_usd(self) -> int: ...

    @property
    def cached_cost_micro_usd(self) -> int: ...

    @property
    def output_cost_micro_usd(self) -> int: ...


def rates(model: TokenPrices) -> dict[str, int]:
    """The prices of this moment, to be kept with an order."""
    return {name: getattr(model, name) for name in ("price_mc", "input_price_mc", "cached_price_mc", "output_price_mc")}


class Sold(TokenPrices, Protocol):
    """A model and its unit."""

    @property
    def price_unit(self) -> PriceUnit: ...


def kept_with_orders(model: Sold) -> dict[str, Any] | None:
    """The prices that a job remembers: of what is sold by tokens, or by time. None: the price of an output says all."""
    if model.price_unit == "tokens":
        return dict(rates(model))
    return {"unit": model.price_unit, "price_mc": model.price_mc} if model.price_unit in BY_TIME else None


def cost_micro_usd(costs: TokenCosts, used: Tokens) -> int:
    """What a call cost the platform, rounded up."""
    micro = (
        (used.read - used.cached) * costs.input_cost_micro_usd
        + used.cached * costs.cached_cost_micro_usd
        + used.written * costs.output_cost_micro_usd
    )
    return costs.cost_micro_usd - (-micro // MILLION)


def tokens_mc(prices: TokenPrices, used: Tokens) -> int:
    """What a call by tokens costs, rounded up to a whole milli-credit."""
    nano = (
        (used.read - used.cached) * prices.input_price_mc
        + used.cached * prices.cached_price_mc
        + used.written * prices.output_price_mc
    )
    return prices.price_mc - (-nano // MILLION)
