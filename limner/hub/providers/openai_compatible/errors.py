"""What an answer that is no result means: by its status (RFC 9110), and by the code that servers put into the body.

Servers differ in the body: `{"error": {message, type, param, code}}`, `{"error": "text"}`, or the fields at the top.
Its text is looked at and never handed on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from limner.hub.providers import verdicts
from limner.hub.providers.base import ProviderError

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
MAX_LOOKED_AT = 4096


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
    number = found.get("code")
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
    because = said.param if code == "provider_refused" and said.param in fields else ""
    return verdicts.failure(code, status, verdicts.retry_after_s(headers), because)


def _code(status: int, said: Told) -> str:
    """The first of these that holds: what the body says is more exact than the status."""
    unreadable = status in {400, 404, 413, 422}
    too_long = unreadable and any(words in said.words for words in CONTEXT_WORDS)
    no_model = unreadable and (said.param == "model" or (status == 404 and "model" in said.words))
    found = (
        (said.code in CONTENT_CODES, "content_refused"),
        (said.code in QUOTA_CODES or status == 402, "provider_quota_exhausted"),
        (said.code in CONTEXT_CODES or too_long, "context_too_long"),
        (status == 413, "provider_request_too_large"),
        (said.code in MODEL_CODES or no_model, "provider_model_unknown"),
        (said.code in UNSUPPORTED_CODES, "unsupported_input"),
    )
    return next((code for holds, code in found if holds), verdicts.by_status(status))
