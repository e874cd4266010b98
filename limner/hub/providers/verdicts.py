"""Errors of providers in limner's own words: what each code says, what follows from it, and how long to wait.

A server may repeat anything it was sent, a key too: none of its words go further than the adapter that reads them.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from limner.hub.providers.base import ErrorKind, ProviderError

PERHAPS_SERVED = frozenset({502, 504, 520, 524})
"""A gateway's own words: what stands behind it may have done the work."""
VERDICTS: dict[str, tuple[str, ErrorKind]] = {
    "content_refused": ("The provider's content policy refused the request.", "content"),
    "provider_quota_exhausted": ("The provider's account has no credit left.", "auth"),
    "context_too_long": ("The request is too long for this provider's model.", "fatal"),
    "provider_request_too_large": ("The request has too many bytes for this provider.", "fatal"),
    "provider_model_unknown": ("The provider does not have this model.", "fatal"),
    "unsupported_input": ("This provider does not take one of the request's fields.", "fatal"),
    "provider_auth": ("The provider does not accept limner's key.", "auth"),
    "provider_rate_limited": ("The provider has too many requests at the moment.", "rate"),
    "provider_refused": ("The provider refused the request.", "bad_request"),
    "provider_unavailable": ("The provider failed.", "retryable"),
    "provider_misconfigured": ("The provider's address does not answer as such a server does.", "fatal"),
}
"""Words and kind of each error. Fatal: another provider may have the model, the room or the field."""


def by_status(status: int) -> str:
    """The code of an answer of which nothing is known but its status (RFC 9110)."""
    verdicts = (
        (status == 402, "provider_quota_exhausted"),
        (status == 413, "provider_request_too_large"),
        (status in {401, 403}, "provider_auth"),
        (status == 429, "provider_rate_limited"),
        (status in {400, 422}, "provider_refused"),
        (status in {408, 409, 425} or status >= 500, "provider_unavailable"),
    )
    return next((code for holds, code in verdicts if holds), "provider_misconfigured")


def failure(code: str, status: int, wait_s: float | None = None, because: str = "") -> ProviderError:
    """The classified error. `because`: a name that limner sent itself, and that its words may repeat."""
    words, kind = VERDICTS[code]
    if because:
        words = f"{words[:-1]} because of {because}."
    unknown = status in PERHAPS_SERVED and kind == "retryable"
    return ProviderError(code, words, kind, wait_s, outcome_unknown=unknown)


def unsupported(what: str) -> ProviderError:
    """A field that this provider does not take: another may."""
    return ProviderError("unsupported_input", f"This provider does not take {what[:100]}.", "fatal")


def invalid(what: str) -> ProviderError:
    """An answer of status 200 that is not what was asked for."""
    words = f"The provider's answer is not understood: {what}."
    return ProviderError("provider_answer_invalid", words, "retryable")


def empty() -> ProviderError:
    """An answer with nothing in it."""
    return ProviderError("provider_answer_empty", "The provider's answer was empty.", "retryable")


def refused() -> ProviderError:
    """An answer that the provider's filter took away."""
    return ProviderError("content_refused", "The provider's content policy refused the answer.", "content")


def cut_off() -> ProviderError:
    """An answer that ended before its first word."""
    words = "The answer had no room: max_tokens was used up before its first word."
    return ProviderError("answer_cut_off", words, "fatal")


def misconfigured(error: ValueError) -> ProviderError:
    """A row from before this release, whose address or configuration cannot work."""
    return ProviderError("provider_misconfigured", f"The provider's {error}.", "fatal")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After, a number or a date (RFC 9110, 10.2.3), from the answer's own Date on; None without one."""
    given = headers.get("retry-after", "").strip()
    try:
        seconds = float(given)
    except ValueError:
        until, said = _moment(given), _moment(headers.get("date", ""))
        if until is None or said is None:
            return None
        seconds = (until - said).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _moment(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
