"""Which providers to try, in what order, and why: a pure function, so that a receipt can quote it."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from limner.hub.catalog import Route

CALL_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider to try; `rule` says in words why it stands here."""

    route: Route
    rule: str


def passed_over(candidate: Candidate) -> Candidate:
    """The same where the one before it was full, and not asked."""
    return replace(candidate, rule=f"{candidate.rule.removesuffix('failed')}was full")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A provider that cannot be tried, and why."""

    provider: str
    reason: str


def order(routes: Sequence[Route], adapters: Collection[str]) -> tuple[list[Candidate], list[Skipped]]:
    """Candidates by priority (name breaks ties), and the routes whose adapter this worker does not have."""
    usable = sorted((r for r in routes if r.adapter in adapters), key=lambda r: (r.priority, r.provider))
    skipped = [Skipped(r.provider, f"no adapter {r.adapter}") for r in routes if r.adapter not in adapters]
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


def timeout_s(route: Route) -> float | None:
    """The route's own time limit of a call; None when it is not a positive number."""
    value = route.config.get("timeout_s", CALL_TIMEOUT_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)
