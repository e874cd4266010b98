"""Which providers to try, in what order, and why: a pure function, so that a receipt can quote it."""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from limner.hub import pricing
from limner.hub.catalog import Route
from limner.hub.pricing import Tokens
from limner.hub.providers import configuration, texts

CALL_TIMEOUT_S = 300.0
NO_TOKENS = Tokens(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Asking:
    """What a request's order may depend on: its job's id, and about as many tokens as it will take."""

    job_id: UUID
    tokens: Tokens = NO_TOKENS


NOTHING = Asking(UUID(int=0))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider to try; `rule` says in words why it stands here, `left_out` which others cannot be tried, and why."""

    route: Route
    rule: str
    left_out: str = ""

    @property
    def told(self) -> str:
        """As it stands on a receipt."""
        return f"{self.rule}; {self.left_out}" if self.left_out else self.rule

    @property
    def asked(self) -> dict[str, Any]:
        """What is written down before it is asked: runs.intend."""
        route = self.route
        return {"provider": route.provider, "provider_model": route.provider_model, "rule": self.told,
                "provider_id": route.provider_id, "own_key": route.own_key is not None}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Skipped:
    """A provider that cannot be tried, and why."""

    provider: str
    reason: str


def asking(job_id: UUID, kind: str, parsed: Mapping[str, Any]) -> Asking:
    """Of a job's request: tokens only where its kind has any."""
    if kind not in texts.SOLD_BY_TOKENS:
        return Asking(job_id)
    longest, outputs = (parsed.get(name) for name in ("max_tokens", pricing.MAX_OUTPUTS_FIELD))
    written = longest * (outputs if isinstance(outputs, int) else 1) if isinstance(longest, int) else 0
    return Asking(job_id, Tokens(texts.likely(parsed), 0, written if kind in texts.WRITING else 0))


def order(
    routes: Sequence[Route], adapters: Collection[str], asked: Asking = NOTHING, *, own_only: bool = False
) -> tuple[list[Candidate], list[Skipped]]:
    """Candidates by the model's rule (priority and name break ties), and the routes that cannot be tried: whose adapter this worker
    does not have, and those that would need the platform's key where the organization, or (`own_only`) what was held for the job,
    allows none."""
    reasons = [(route, _why_not(route, adapters, own_only)) for route in routes]
    usable = [r for r, why in reasons if why is None]
    skipped = [Skipped(r.provider, why) for r, why in reasons if why is not None]
    if not usable:
        return [], skipped
    left_out = told(skipped)
    key, reason = RULES[usable[0].routing]
    usable.sort(key=lambda route: (*key(route, asked), route.priority, route.provider))
    total = len(usable)
    candidates = [
        Candidate(
            route,
            f"first by {reason(route, asked)} of {total}"
            if place == 1
            else f"{place} of {total} by {reason(route, asked)}, after {usable[place - 2].provider} failed",
            left_out,
        )
        for place, route in enumerate(usable, start=1)
    ]
    return candidates, skipped


def told(skipped: Sequence[Skipped]) -> str:
    """Who was left out, and why; nothing where nobody was."""
    return ", ".join(f"{skip.provider} was left out ({skip.reason})" for skip in skipped)


def after(candidate: Candidate, before: Sequence[tuple[str, str]]) -> Candidate:
    """The same after what became of those before it: (provider, why it was not asked, or nothing: it failed)."""
    if not any(why for _, why in before):
        return candidate
    left = [f"{provider} {why}" for provider, why in before[:-1] if why]
    provider, why = before[-1]
    left.append(f"{provider} {why or 'failed'}")
    return replace(candidate, rule=f"{candidate.rule.partition(', after ')[0]}, after {' and '.join(left)}")


def _why_not(route: Route, adapters: Collection[str], own_only: bool) -> str | None:
    if route.adapter not in adapters:
        return f"no adapter {route.adapter}"
    if route.own_key is not None:
        return None
    if own_only:
        return "ordered on own keys"
    return "own keys only" if route.own_keys_only and route.adapter not in configuration.keyless() else None


def timeout_s(route: Route) -> float | None:
    """The route's own time limit of a call; None when it is not a positive number."""
    value = route.config.get("timeout_s", CALL_TIMEOUT_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)


def _draw(route: Route, asked: Asking) -> float:
    """The time of the first event at a rate of the weight: who comes first is drawn by weight, and so is each next one."""
    drawn = hashlib.sha256(asked.job_id.bytes + route.provider_id.bytes).digest()
    return -math.log((int.from_bytes(drawn[:8], "big") + 1) / 2**64) / route.weight


def _cost(route: Route, asked: Asking) -> int:
    return pricing.cost_micro_usd(route, asked.tokens)


def _latency(route: Route) -> float:
    """What was not measured of late goes first, or it never would be."""
    return -1.0 if route.latency_ms is None else route.latency_ms


def _told_latency(route: Route) -> str:
    return "not measured of late" if route.latency_ms is None else f"{route.latency_ms:.0f} ms of late"


RULES: dict[str, tuple[Callable[[Route, Asking], tuple[float, ...]], Callable[[Route, Asking], str]]] = {
    "priority": (lambda route, _: (route.priority,), lambda route, _: f"priority {route.priority}"),
    "weight": (
        lambda route, asked: (route.priority, _draw(route, asked)),
        lambda route, _: f"priority {route.priority}, drawn by weight {route.weight} and the job's id,",
    ),
    "cost": (
        lambda route, asked: (_cost(route, asked),),
        lambda route, asked: f"cost ({_cost(route, asked)} micro-USD expected)",
    ),
    "latency": (lambda route, _: (_latency(route),), lambda route, _: f"latency ({_told_latency(route)})"),
}
"""By a model's `routing`: what a route is sorted by, and that in words."""
