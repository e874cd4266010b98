"""Which providers to try, in what order, and why: a pure function, so that a receipt can quote it."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limner.hub.catalog import Route
from limner.hub.providers.configuration import KEYLESS

CALL_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider to try; `rule` says in words why it stands here."""

    route: Route
    rule: str

    @property
    def asked(self) -> dict[str, Any]:
        """What is written down before it is asked: runs.intend."""
        route = self.route
        return {"provider": route.provider, "provider_model": route.provider_model, "rule": self.rule,
                "provider_id": route.provider_id, "own_key": route.own_key is not None}  # fmt: skip


def passed_over(candidate: Candidate) -> Candidate:
    """The same where the one before it was full, and not asked."""
    return replace(candidate, rule=f"{candidate.rule.removesuffix('failed')}was full")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A provider that cannot be tried, and why."""

    provider: str
    reason: str


def order(
    routes: Sequence[Route], adapters: Collection[str], *, own_only: bool = False
) -> tuple[list[Candidate], list[Skipped]]:
    """Candidates by priority (name breaks ties), and the routes that cannot be tried: whose adapter this worker does not have, and
    those that would need the platform's key where the organization, or (`own_only`) what was held for the job, allows none."""
    reasons = [(route, _why_not(route, adapters, own_only)) for route in routes]
    usable = sorted((r for r, why in reasons if why is None), key=lambda r: (r.priority, r.provider))
    skipped = [Skipped(r.provider, why) for r, why in reasons if why is not None]
    total = len(usable)
    candidates = [
        Candidate(
            route,
            f"first by priority {route.priority} of {total}"
            if place == 1
            else f"{place} of {total} by priority {route.priority}, after {usable[place - 2].provider} failed",
        )
        for place, route in enumerate(usable, start=1)
    ]
    return candidates, skipped


def _why_not(route: Route, adapters: Collection[str], own_only: bool) -> str | None:
    if route.adapter not in adapters:
        return f"no adapter {route.adapter}"
    if route.own_key is not None:
        return None
    if own_only:
        return "ordered on own keys"
    return "own keys only" if route.own_keys_only and route.adapter not in KEYLESS else None


def timeout_s(route: Route) -> float | None:
    """The route's own time limit of a call; None when it is not a positive number."""
    value = route.config.get("timeout_s", CALL_TIMEOUT_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)
