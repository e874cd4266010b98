"""Which providers to try, in what order, and why: a pure function, so that a receipt can quote it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from limner.hub.catalog import Route


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider to try; `rule` says in words why it stands here."""

    route: Route
    rule: str


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
