"""What an answer of Google's that is no result means: by the status that stands in it (google.rpc.Code) and its details."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from limner.hub.providers import verdicts
from limner.hub.providers.base import ProviderError
from limner.hub.providers.replies import part

CODES = {
    "INVALID_ARGUMENT": "provider_refused", "OUT_OF_RANGE": "provider_refused", "FAILED_PRECONDITION": "provider_auth",
    "PERMISSION_DENIED": "provider_auth", "UNAUTHENTICATED": "provider_auth", "NOT_FOUND": "provider_model_unknown",
    "RESOURCE_EXHAUSTED": "provider_rate_limited", "INTERNAL": "provider_unavailable", "UNAVAILABLE": "provider_unavailable",
    "DEADLINE_EXCEEDED": "provider_unavailable", "ABORTED": "provider_unavailable", "UNKNOWN": "provider_unavailable",
}  # fmt: skip
KEY_REASONS = frozenset({"API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED"})
LONG_WORDS = ("exceeds the maximum number of tokens", "token count", "context window")
KEY_WORDS = ("api key not valid", "api key expired")
BILLING_WORDS = ("billing", "prepayment credits", "depleted")
DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s", re.ASCII)
MAX_LOOKED_AT = 4096


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The classified error of an answer. Streams that fail before their first event come as a list with one error in it."""
    try:
        value = orjson.loads(body)
    except ValueError:
        value = None
    return failure(value[0] if isinstance(value, list) and value else value, status, headers)


def failure(value: Any, status: int, headers: Mapping[str, str] | None = None) -> ProviderError:
    """The same of a parsed body; of an event of a stream the status stands in it."""
    told = part(value, "error")
    number = told.get("code")
    status = number if isinstance(number, int) and 400 <= number <= 599 else status
    wait_s = _retry_delay_s(told)
    if wait_s is None:
        wait_s = verdicts.retry_after_s(headers or {})
    return verdicts.failure(_code(status, told), status, wait_s)


def _code(status: int, told: Mapping[str, Any]) -> str:
    """What the body says is more exact than the status."""
    code = CODES.get(str(told.get("status"))) or verdicts.by_status(status)
    words = str(told.get("message"))[:MAX_LOOKED_AT].lower()
    invalid = code == "provider_refused"
    wrong_key = any(detail.get("reason") in KEY_REASONS for detail in _details(told) if _is_text(detail.get("reason")))
    found = (
        (wrong_key or (invalid and any(word in words for word in KEY_WORDS)), "provider_auth"),
        (invalid and any(word in words for word in LONG_WORDS), "context_too_long"),
        (code in {"provider_auth", "provider_rate_limited"} and any(w in words for w in BILLING_WORDS), "provider_quota_exhausted"),
    )  # fmt: skip
    return next((better for holds, better in found if holds), code)


def _retry_delay_s(told: Mapping[str, Any]) -> float | None:
    """Of google.rpc.RetryInfo, such as 34.07s."""
    for detail in _details(told):
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and (found := DELAY.fullmatch(delay)) is not None:
            return float(found[1])
    return None


def _details(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    details = told.get("details")
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
