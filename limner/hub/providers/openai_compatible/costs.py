"""What a gateway says that a call cost it: exact dollars in the answer's usage, in place of a list price."""

import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from limner.hub.providers.base import ProviderResult

MICRO = 1_000_000
MOST_USD = 1_000_000
"""A million dollars for one call is no cost but a mistake."""


def stated(result: ProviderResult, value: Mapping[str, Any]) -> ProviderResult:
    """The result with the cost that the answer states, where it states one that can be true."""
    cost = micro_usd(value.get("usage"))
    return result if cost is None else replace(result, cost_micro_usd=cost)


def micro_usd(usage: Any) -> int | None:
    """`cost` of a usage object, in dollars, as micro-dollars, rounded up; None where there is none, or none that can be true.

    With a key of one's own for what stands behind the gateway, that bill stands beside the gateway's own and belongs to the cost.
    """
    if not isinstance(usage, Mapping):
        return None
    own = _dollars(usage.get("cost"))
    details = usage.get("cost_details")
    behind = _dollars(details.get("upstream_inference_cost")) if isinstance(details, Mapping) else None
    if own is None:
        return None
    total = own + (behind or 0 if usage.get("is_byok") is True else 0)
    return math.ceil(total * MICRO)


def _dollars(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = Decimal(repr(value))
    except InvalidOperation:
        return None
    return found if found.is_finite() and 0 <= found <= MOST_USD else None
