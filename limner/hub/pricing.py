"""What a request costs, from the parsed request and nothing else; all amounts in milli-credits."""

from collections.abc import Mapping
from typing import Any, Literal

PriceUnit = Literal["output", "job"]
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
