"""Predictions, read strictly: how far they are, what they made, what they consumed, and why there is nothing."""

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from limner.egress.answers import Answer
from limner.hub.providers import verdicts
from limner.hub.providers.base import ProviderError, Usage
from limner.hub.providers.fetching import is_picture

ID = re.compile(r"[A-Za-z0-9]{1,100}", re.ASCII)
ENDED = frozenset({"succeeded", "failed", "canceled", "aborted"})
WAITING, WORKING, NEARLY = 12, 20, 90
LOGS_LOOKED_AT = 2000
MAX_DEPTH = 4
MAX_PARTS = 200_000
MAX_LOOKED_AT = 4096
PERCENT = re.compile(r"(?<![\d.])(\d{1,3})%")
LATER = re.compile(r"(?:in|~)\s*~?(\d{1,5})\s*s", re.ASCII)
CONTENT_WORDS = ("nsfw", "sensitive", "safety", "content policy", "moderation", "flagged", "e005")
VERSION_WORDS = ("version", "does not exist", "not found")


def read_id(value: Mapping[str, Any]) -> str:
    """The prediction's name. Raises ProviderError provider_answer_invalid: it may be under way all the same."""
    found = value.get("id")
    if not isinstance(found, str) or not ID.fullmatch(found):
        raise ProviderError(
            "provider_answer_invalid", "The provider's answer names no prediction.", "retryable", outcome_unknown=True
        )
    return found


def refusal(answer: Answer) -> ProviderError:
    """The classified error of a prediction that was not created: {detail, title, status}, of which nothing is repeated."""
    told = _object(answer.body)
    words = f"{told.get('title')} {told.get('detail')}"[:MAX_LOOKED_AT].lower()
    code = verdicts.by_status(answer.status)
    if any(word in words for word in CONTENT_WORDS) and answer.status in {400, 422}:
        code = "content_refused"
    elif answer.status == 404 or (answer.status == 422 and any(word in words for word in VERSION_WORDS)):
        code = "provider_model_unknown"
    elif answer.status == 422:  # the model's own schema refused a field: another model may take it
        code = "unsupported_input"
    return verdicts.failure(code, answer.status, _wait_s(answer, told, words))


def _wait_s(answer: Answer, told: Mapping[str, Any], words: str) -> float | None:
    """Seconds to wait: by header, by the body's retry_after, or by what its words say."""
    stated = verdicts.retry_after_s(answer.headers)
    given = told.get("retry_after")
    if stated is None and isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
        stated = max(float(given), 0.0)
    if stated is None and answer.status == 429 and (found := LATER.search(words)):
        stated = float(found[1])
    return stated


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def progress(value: Mapping[str, Any]) -> tuple[int, str]:
    """Percent and stage of a prediction that is under way: by the last percentage in its logs, where there is one."""
    if value.get("status") != "processing":
        return WAITING, "waiting for the provider"
    logs = value.get("logs")
    found = PERCENT.findall(logs[-LOGS_LOOKED_AT:]) if isinstance(logs, str) else []
    done = min(int(found[-1]), 100) if found else 0
    return WORKING + done * (NEARLY - WORKING) // 100, "provider is working"


def failed(value: Mapping[str, Any]) -> ProviderError:
    """Why a prediction that has ended delivered nothing."""
    status = value.get("status")
    if status in {"canceled", "aborted"}:
        return ProviderError("provider_task_cancelled", "The provider's task was cancelled there.", "retryable")
    words = str(value.get("error"))[:MAX_LOOKED_AT].lower()
    if any(word in words for word in CONTENT_WORDS):
        return verdicts.refused()
    return ProviderError("provider_task_failed", "The provider's task failed.", "retryable")


def texts(value: Mapping[str, Any]) -> list[str]:
    """The texts of an output, in order: of a text, a list of them, or an object's values; pictures are texts that name them."""
    found: list[str] = []
    _gather(value.get("output"), found, MAX_DEPTH)
    if not found:
        if value.get("data_removed") is True:
            raise ProviderError("result_gone", "The provider has deleted its result.", "retryable")
        raise verdicts.empty()
    return found


def _gather(part: Any, found: list[str], depth: int) -> None:
    if isinstance(part, str) and part and len(found) < MAX_PARTS:
        found.append(part)
    elif isinstance(part, list | dict) and depth:
        for inner in part.values() if isinstance(part, dict) else part:
            _gather(inner, found, depth - 1)


def pictures(value: Mapping[str, Any]) -> list[str]:
    """The addresses and data URIs of an output. Raises ProviderError provider_answer_empty where it has only words."""
    if not (found := [text for text in texts(value) if is_picture(text)]):
        raise verdicts.empty()
    return found


def usage(value: Mapping[str, Any]) -> tuple[Usage, ...]:
    """Milliseconds that the prediction ran, where they are stated."""
    metrics = value.get("metrics")
    stated = metrics.get("predict_time") if isinstance(metrics, dict) else None
    if stated is None:
        return ()
    number = isinstance(stated, int | float) and not isinstance(stated, bool) and math.isfinite(stated)
    return (Usage("predict_time", round(stated * 1000) if number else -1, "millisecond"),)
