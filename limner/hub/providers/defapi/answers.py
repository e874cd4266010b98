"""DefAPI's envelope {code, message, detail?, data}, read strictly; of its words nothing is repeated."""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from limner.egress.answers import Answer
from limner.hub.providers import asking, verdicts
from limner.hub.providers.base import ProviderError, Usage

ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
MAX_LOOKED_AT = 4096
MAX_PICTURES = 16
MILLION = 1_000_000
STAGES = {"pending": (12, "waiting for the provider"), "submitted": (15, "waiting for the provider")}
WORKING = (40, "provider is working")
WORDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("policy", "safety", "sensitive", "moderation", "nsfw", "prohibited", "flagged"), "content_refused"),
    (("insufficient", "balance", "credit", "quota"), "provider_quota_exhausted"),
    (("unauthorized", "api key", "invalid token", "forbidden"), "provider_auth"),
    (("rate limit", "too many requests"), "provider_rate_limited"),
    (("model not", "no such model", "unknown model", "model does not"), "provider_model_unknown"),
)
"""What its errors are seen to say, the first that fits."""
MISSING = ("not found", "not exist", "no such task")


def read_id(answer: Answer) -> str:
    """The task's name. Raises ProviderError: the classified refusal, or provider_answer_invalid (the outcome is unknown)."""
    value = _envelope(answer)
    if answer.status >= 300 or (value is not None and value.get("code") != 0):
        raise refusal(answer)
    data = None if value is None else value.get("data")
    found = data.get("task_id") if isinstance(data, dict) else None
    if not isinstance(found, str) or not ID.fullmatch(found):
        words = "The provider's answer names no task."
        raise ProviderError("provider_answer_invalid", words, "retryable", outcome_unknown=True)
    return found


def refusal(answer: Answer) -> ProviderError:
    """The classified error of an answer whose status or code is one."""
    value = _envelope(answer) or {}
    told = f"{value.get('detail')} {value.get('message')}"[:MAX_LOOKED_AT].lower()
    status = answer.status
    stated = value.get("code")
    if status < 300 and isinstance(stated, int) and 400 <= stated <= 599:
        status = stated
    code = next((code for words, code in WORDS if any(word in told for word in words)), None)
    if code is None:
        code = verdicts.by_status(status) if status >= 300 else "provider_unavailable"
    return verdicts.failure(code, status, verdicts.retry_after_s(answer.headers))


def is_missing(answer: Answer) -> bool:
    """Whether it says that there is no such task; of a fresh one it says so for some seconds."""
    value = _envelope(answer)
    if answer.status == 404:
        return True
    if value is None or value.get("code") == 0:
        return False
    told = f"{value.get('detail')} {value.get('message')}"[:MAX_LOOKED_AT].lower()
    return any(word in told for word in MISSING)


def read_task(answer: Answer) -> dict[str, Any]:
    """What is said of the task. Raises ProviderError."""
    value = asking.read_object(answer.body)
    if value.get("code") != 0:
        raise refusal(answer)
    data = value.get("data")
    if not isinstance(data, dict):
        raise verdicts.invalid("no data")
    return data


def failed(task: Mapping[str, Any]) -> ProviderError:
    """Why a task failed: its status_reason is looked at, and not repeated."""
    reason = task.get("status_reason")
    told = str(reason.get("message") if isinstance(reason, dict) else reason)[:MAX_LOOKED_AT].lower()
    if any(word in told for word in WORDS[0][0]):
        return verdicts.refused()
    return ProviderError("provider_task_failed", "The provider's task failed.", "retryable")


def pictures(task: Mapping[str, Any]) -> list[str]:
    """The addresses of what it made. Raises ProviderError provider_answer_empty for a success of words alone, or of nothing."""
    result = task.get("result")
    items = result if isinstance(result, list) else []
    found = [item["image"] for item in items if isinstance(item, dict) and isinstance(item.get("image"), str)]
    if not (named := [text for text in found if text]):
        raise verdicts.empty()
    return named[:MAX_PICTURES]


def consumed(task: Mapping[str, Any]) -> int | None:
    """Millionths of whatever it counts; -1 for what is no number, None where nothing is said."""
    stated = task.get("consumed")
    if stated is None or stated == "":
        return None
    try:
        number = Decimal(str(stated)[:40])
    except InvalidOperation:
        return -1
    return int(number * MILLION) if number.is_finite() and abs(number) < MILLION else -1


def usage(millionths: int | None) -> tuple[Usage, ...]:
    """What was consumed, in a unit that only the provider knows."""
    return () if millionths is None else (Usage("consumed", millionths, "millionth"),)


def _envelope(answer: Answer) -> dict[str, Any] | None:
    try:
        value = orjson.loads(answer.body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
