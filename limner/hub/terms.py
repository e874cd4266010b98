"""What an organization's keys and settings make of an order: whose key works for it, at which part of the price, in what tone.

The terms of an order are kept with its job, so that what changes while it waits does not change its price.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from limner.hub import pricing
from limner.hub.catalog import Route
from limner.hub.endings import Kept
from limner.hub.remembered import CompiledModel
from limner.hub.routing import Candidate

Terms = Mapping[str, Any]
"""`fee_percent`: of the list price, for what an own key delivers. `own_only`: only that much is held, so nobody else's key may work.
`tone`: what the organization put in front of the text."""
WRITES = "text.generate"


def percent_of(route: Route, terms: Terms | None) -> int:
    """The part of the list price that is charged for what this route delivers."""
    if route.own_key is None:
        return 100
    return int((terms or {}).get("fee_percent", route.fee_percent))


def applied(kept: Kept, route: Route, terms: Terms | None) -> Kept:
    """What a route delivered, with whose key it did, and for which part of the price."""
    return replace(kept, own_key=route.own_key is not None, percent=percent_of(route, terms))


def own_only(terms: Terms | None) -> bool:
    """Whether the hold is only enough for the organization's own keys."""
    return bool((terms or {}).get("own_only", False))


def of_order(said: dict[str, Any], model: CompiledModel, tone: str | None) -> tuple[dict[str, Any], Terms | None]:
    """The input of a job and its terms. `tone` goes in front of what holds for every answer, where a model that writes takes such."""
    agreed = dict(model.terms or {})
    if tone and model.row.kind == WRITES and "system" in model.row.input_schema.get("properties", {}):
        agreed["tone"] = tone
        said = said | {"system": "\n\n".join(part for part in (tone, said.get("system")) if part)}
    return said, agreed or None


def hold_mc(price_mc: int, terms: Terms | None) -> int:
    """What is held of a list price: all of it wherever the platform's key may come to work."""
    return pricing.part_mc(price_mc, int(terms["fee_percent"])) if terms and own_only(terms) else price_mc


def of_call(candidates: Sequence[Candidate]) -> Terms | None:
    """The terms of a call that is answered at once, by these candidates and nobody else; None without an own key among them."""
    own = [candidate.route for candidate in candidates if candidate.route.own_key is not None]
    if not own:
        return None
    return {"fee_percent": own[0].fee_percent, "own_only": len(own) == len(candidates)}
