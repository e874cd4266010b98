"""How a run may end, and what leads there: the words between the two halves of a run (hub.executor)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limner.hub import outputs, pricing, runs
from limner.hub.pricing import Rates, Tokens
from limner.hub.providers import texts
from limner.hub.providers.base import ErrorKind, ProviderError, Usage
from limner.hub.runs import Work

MAX_DEFERRAL_S = 3600.0
FINAL_KINDS: frozenset[ErrorKind] = frozenset({"bad_request", "content"})

MESSAGES = {
    "cancelled": "Cancelled while it ran.",
    "deadline_exceeded": "The job was not finished before its deadline.",
    "runs_exhausted": "Every try ended without a result.",
    "no_provider": "No provider serves this model at the moment.",
    "no_output": "The provider returned nothing that could be used.",
    "provider_full": "The provider has as many jobs as it may have at once.",
    "provider_unavailable": "No provider of this model can be asked at the moment.",
    "breaker_open": "The provider failed too often, and is left alone for a while.",
    "provider_resting": "The provider asked to be left alone for a while.",
    "provider_no_permit": "The provider was asked as often as it may be.",
    "provider_tokens_too_few": "The request needs more tokens than the provider takes in a minute.",
    "outcome_unknown": "The provider may have been paid already; it is not asked again.",
    "store_unavailable": "The result could not be stored.",
    "adapter_error": "The provider answered in a way that is not understood.",
    "provider_misconfigured": "The provider's timeout_s must be a positive number of seconds.",
    "internal_error": "Something went wrong on our side.",
}


STATUSES: dict[ErrorKind, int] = {
    "bad_request": 400,
    "content": 400,
    "rate": 429,
    "retryable": 502,
    "auth": 502,
    "fatal": 502,
}
"""Of HTTP, where a call is answered at once."""
REQUESTS_FAULT = frozenset(
    {
        "content_refused", "provider_refused", "prompt_required", "image_required", "one_image_required", "mask_required",
        "mask_without_alpha", "mask_size_mismatch", "mask_empty", "mask_full", "output_too_large", "unsupported_media",
        "unreadable_image", "image_too_large", "unsupported_input", "text_too_long", "text_empty", "bad_message", "bad_dimensions",
        "audio_too_large", "audio_too_long", "audio_required",
    }
)  # fmt: skip
"""Codes of failed jobs: what another request would do better."""

Finish = runs.Closing


@dataclass(frozen=True, slots=True)
class Release:
    """The job goes back into the queue; `counts`: this run was one of its tries."""

    delay_s: float
    counts: bool
    reason: str


Ending = Finish | Release


@dataclass(frozen=True, slots=True)
class Kept:
    """Outputs in limner's own store, who made them, what that cost the platform, and the call to record, if it is not yet.

    `usage`: what the provider consumed for them, as far as it said so. `own_key`: at the organization's own cost, for `percent` of
    the list price.
    """

    outputs: list[dict[str, Any]]
    provider: str
    cost_micro_usd: int | None
    delivery: runs.Delivery | None = None
    usage: tuple[Usage, ...] = ()
    own_key: bool = False
    percent: int = 100

    @property
    def platform_cost_micro_usd(self) -> int | None:
        """None where it is not the platform's to pay."""
        return None if self.own_key else self.cost_micro_usd


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a provider did not deliver. `known` False: it may have done, and billed, the work all the same.

    `cost_micro_usd`: what it billed for it; None where it stated nothing.
    """

    code: str
    message: str
    kind: ErrorKind
    known: bool = True
    retry_after_s: float = 0.0
    stops: bool = False  # asking another provider would not help
    full: bool = False  # it was not asked: there was no place, no permit, or it was left alone
    passed: str = ""  # the same in words, as they stand on a receipt
    cost_micro_usd: int | None = None


SECONDS = ("audio", "second")
"""How an adapter names the seconds of a recording that it worked on."""
FULL = Failure("provider_full", MESSAGES["provider_full"], "rate", full=True, passed="was full")


def nobody(left_out: str) -> Failure:
    """No provider can be tried; `left_out`: whose routes there are, and why they are no use."""
    words = MESSAGES["no_provider"]
    return Failure("no_provider", f"{words} {left_out}." if left_out else words, "retryable")


def failed(error: ProviderError) -> Failure:
    """What an adapter raised, as a run reads it."""
    return Failure(
        error.code, error.message, error.kind, known=not error.outcome_unknown, retry_after_s=error.retry_after_s or 0
    )


def without_result(failures: Sequence[Failure], backoff_s: float, remaining_s: float, *, is_last: bool) -> Ending:
    """How a run ends in which no provider delivered: `is_last` of those a job may have, or given back for at least `backoff_s`.

    Never for later than the deadline: an overdue job is closed by whoever claims it, and must be claimable.
    """
    last = failures[-1] if failures else nobody("")
    passed = [failure for failure in failures if failure.full]
    if passed and last.kind not in FINAL_KINDS and not last.stops:
        soonest = min(passed, key=lambda failure: failure.retry_after_s)
        wait_s = max(backoff_s, min(soonest.retry_after_s, MAX_DEFERRAL_S))
        return Release(max(min(wait_s, remaining_s), 0.0), counts=False, reason=soonest.code)
    if failures and all(failure.kind == "rate" for failure in failures):
        asked_s = min(failure.retry_after_s for failure in failures)
        wait_s = max(backoff_s, min(asked_s, MAX_DEFERRAL_S))
        return Release(max(min(wait_s, remaining_s), 0.0), counts=False, reason="rate_limited")
    hopeless = bool(failures) and all(failure.kind == "fatal" for failure in failures)
    if hopeless or last.kind in FINAL_KINDS or is_last:
        return Finish("failed", outputs.plain(last.code, 100), outputs.plain(last.message, 2000))
    return Release(max(min(backoff_s, remaining_s), 0.0), counts=True, reason=last.code)


def goes_on(kind: str, failure: Failure, next_on: Sequence[ErrorKind]) -> bool:
    """Whether the next provider is asked. What one will not describe, another still may: the last one is limner's own."""
    return (failure.full or failure.kind in next_on or kind == texts.PICTURE_KIND) and not failure.stops


def success(work: Work, kept: Kept) -> Finish:
    """Charged for what was stored, by tokens or by time; with usage records of what was sold and what the provider says it consumed."""
    if work.token_prices is not None and "unit" in work.token_prices:
        return _by_time(work, kept, work.token_prices)
    if work.token_prices is not None:
        return _by_tokens(work, kept, Rates(**work.token_prices))
    count, kind = len(kept.outputs), kept.outputs[0]["type"]
    sold = {"kind": kind, "quantity": count, "unit": kind, "cost_micro_usd": kept.platform_cost_micro_usd}
    consumed = [{"kind": use.kind, "quantity": use.quantity, "unit": use.unit} for use in kept.usage]
    unit_price_mc = pricing.part_mc(work.unit_price_mc, kept.percent)
    return _delivered(kept, pricing.charge_mc(unit_price_mc, count, work.price_hold_mc), [sold, *consumed])


def token_usage(used: Tokens, cost_micro_usd: int | None, *, estimated: bool) -> list[dict[str, Any]]:
    """The usage records of what was sold by tokens."""
    unit = "estimated_token" if estimated else "token"
    usage: list[dict[str, Any]] = [
        {"kind": "input_tokens", "quantity": used.read, "unit": unit, "cost_micro_usd": cost_micro_usd},
        {"kind": "output_tokens", "quantity": used.written, "unit": unit},
    ]
    if used.cached:
        usage.append({"kind": "cached_input_tokens", "quantity": used.cached, "unit": unit})
    return usage


def _by_tokens(work: Work, kept: Kept, rates: Rates) -> Finish:
    """By what the provider counted; by the lengths of what was asked and answered where it did not."""
    used = stated_tokens(kept.usage)
    estimated = used is None
    if used is None:
        written = sum(len(str(output.get("text", ""))) for output in kept.outputs) // 4 + 1
        used = Tokens(texts.likely(work.input), 0, written if work.kind in texts.WRITING else 0)
    charge_mc = min(pricing.part_mc(pricing.tokens_mc(rates, used), kept.percent), work.price_hold_mc)
    return _delivered(kept, charge_mc, token_usage(used, kept.platform_cost_micro_usd, estimated=estimated))


def _by_time(work: Work, kept: Kept, sold: Mapping[str, Any]) -> Finish:
    """By the seconds that the provider counted, else by those that were measured; never above the hold."""
    told = next((use.quantity for use in kept.usage if (use.kind, use.unit) == SECONDS), None)
    measured_ms = work.input.get("audio", {}).get("duration_ms", 0)
    seconds = math.ceil(measured_ms / 1000) if told is None else told
    price_mc = pricing.part_mc(pricing.time_mc(sold["price_mc"], sold["unit"], seconds), kept.percent)
    charge_mc = min(price_mc, work.price_hold_mc)
    usage = [{"kind": "audio", "quantity": seconds, "unit": "second", "cost_micro_usd": kept.platform_cost_micro_usd}]
    others = [use for use in kept.usage if (use.kind, use.unit) != SECONDS]
    usage += [{"kind": use.kind, "quantity": use.quantity, "unit": use.unit} for use in others]
    return _delivered(kept, charge_mc, usage)


def stated_tokens(usage: Sequence[Usage]) -> Tokens | None:
    """What a provider counted; None where it did not, or cannot have."""
    counted = {use.kind: use.quantity for use in usage if use.unit == "token"}
    read, cached = counted.get("input_tokens"), counted.get("cached_input_tokens", 0)
    if read is None or cached > read:
        return None
    return Tokens(read, cached, counted.get("output_tokens", 0))


def _delivered(kept: Kept, charge_mc: int, usage: list[dict[str, Any]]) -> Finish:
    return Finish(
        "succeeded",
        charge_mc=charge_mc,
        outputs=kept.outputs,
        provider=kept.provider,
        usage=usage,
        delivery=kept.delivery,
    )
