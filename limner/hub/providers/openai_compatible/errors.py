"""What an answer that is no result means: by its status (RFC 9110), and by the code that servers put into the body.

Servers differ in the body: `{"error": {message, type, param, code}}`, `{"error": "text"}`, or the fields at the top.
Its text is looked at and never handed on.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from limner.hub.providers.base import ErrorKind, ProviderError

CONTENT_CODES = frozenset(
    {
        "content_policy_violation",
        "content_filter",
        "moderation_blocked",
        "content_moderation",
        "responsibleaipolicyviolation",
    }
)
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"})
MODEL_CODES = frozenset({"model_not_found", "invalid_model", "model_not_supported", "unsupported_model"})
UNSUPPORTED_CODES = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
CONTEXT_CODES = frozenset({"context_length_exceeded", "string_above_max_length", "max_tokens_exceeded"})
CONTEXT_WORDS = ("context length", "context window", "context size", "maximum context", "too many tokens")
KNOWN_CODES = CONTENT_CODES | QUOTA_CODES | MODEL_CODES | UNSUPPORTED_CODES | CONTEXT_CODES
PERHAPS_SERVED = frozenset({502, 504, 520, 524})
"""A gateway's own words: what stands behind it may have done the work."""
MODERATED = "content_moderation"
MAX_LOOKED_AT = 4096
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


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says went wrong. `code` is one of KNOWN_CODES or empty; `status` one that stands in the body."""

    code: str
    param: str
    words: str
    status: int | None


def read_told(body: bytes) -> Told:
    """What the body of an error says; nothing where it is not understood. Raises nothing."""
    try:
        value = orjson.loads(body)
    except ValueError:
        value = None
    return told(value)


def told(value: Any) -> Told:
    """The same from a parsed body."""
    found = value.get("error", value) if isinstance(value, dict) else None
    if isinstance(found, str):
        found = {"message": found}
    if not isinstance(found, dict):
        return Told("", "", "", None)
    codes = [str(found.get(name)).lower() for name in ("code", "type")]
    number, more = found.get("code"), found.get("metadata")
    if isinstance(more, dict) and ("flagged_input" in more or more.get("reasons")):
        codes.append(MODERATED)  # a gateway that lets requests be judged first says so there
    param, words = found.get("param"), found.get("message")
    return Told(
        code=next((code for code in codes if code in KNOWN_CODES), ""),
        param=param if isinstance(param, str) else "",
        words=words[:MAX_LOOKED_AT].lower() if isinstance(words, str) else "",
        status=number if isinstance(number, int) and 400 <= number <= 599 else None,
    )


def failure(status: int, headers: Mapping[str, str], said: Told, fields: Collection[str]) -> ProviderError:
    """The classified error of an answer. `fields`: the names that were sent, the only ones its message may repeat."""
    code = _code(status, said)
    words, kind = VERDICTS[code]
    if code == "provider_refused" and said.param in fields:
        words = f"{words[:-1]} because of {said.param}."
    unknown = status in PERHAPS_SERVED and kind == "retryable"
    return ProviderError(code, words, kind, retry_after_s(headers), outcome_unknown=unknown)


def _code(status: int, said: Told) -> str:
    """The first of these that holds: what the body says is more exact than the status."""
    unreadable = status in {400, 404, 413, 422}
    too_long = unreadable and any(words in said.words for words in CONTEXT_WORDS)
    no_model = unreadable and (said.param == "model" or (status == 404 and "model" in said.words))
    verdicts = (
        (said.code in CONTENT_CODES, "content_refused"),
        (said.code in QUOTA_CODES or status == 402, "provider_quota_exhausted"),
        (said.code in CONTEXT_CODES or too_long, "context_too_long"),
        (status == 413, "provider_request_too_large"),
        (said.code in MODEL_CODES or no_model, "provider_model_unknown"),
        (said.code in UNSUPPORTED_CODES, "unsupported_input"),
        (status in {401, 403}, "provider_auth"),
        (status == 429, "provider_rate_limited"),
        (status in {400, 422}, "provider_refused"),
        (status in {408, 409, 425} or status >= 500, "provider_unavailable"),
    )
    return next((code for holds, code in verdicts if holds), "provider_misconfigured")


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
