"""The answer of audio/transcriptions: a text, what language it is in, how long the recording was, and the times of its parts."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limner.hub.providers.base import Output, ProviderCall, ProviderError, ProviderResult, Usage
from limner.hub.providers.openai_compatible.answers import reference
from limner.hub.providers.openai_compatible.config import Config

MAX_SECONDS = 10**6
MAX_SEGMENTS = 500
MAX_SEGMENT_CHARS = 1000
MAX_LANGUAGE = 40


def read(value: Mapping[str, Any], headers: Mapping[str, str]) -> ProviderResult:
    """The text, as an output with the facts `language`, `duration` (seconds) and `segments` where they are stated.

    Usage: the seconds and the tokens that the server states. Raises ProviderError provider_answer_invalid and -_empty (retryable).
    """
    text = value.get("text")
    if not isinstance(text, str):
        raise ProviderError("provider_answer_invalid", "The provider's answer is not understood: no text.", "retryable")
    if not text.strip():
        raise ProviderError("provider_answer_empty", "The provider heard no words.", "retryable")
    output = Output(0, "text", text=text, facts=_facts(value))
    return ProviderResult((output,), _usage(value), task_id=reference(value, headers))


def counted(result: ProviderResult, call: ProviderCall, config: Config) -> ProviderResult:
    """With the seconds that were measured where the server stated none, and what they cost where a minute has a cost."""
    told = next((use.quantity for use in result.usage if use.kind == "audio"), None)
    seconds = math.ceil(call.audio_ms / 1000) if told is None else told
    usage = result.usage if told is not None else (Usage("audio", seconds, "second"), *result.usage)
    cost = -(-seconds * config.minute_cost_micro_usd // 60) if config.minute_cost_micro_usd else None
    return replace(result, usage=usage, cost_micro_usd=cost)


def _facts(value: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    language = value.get("language")
    if isinstance(language, str) and language.isprintable() and 0 < len(language) <= MAX_LANGUAGE:
        facts["language"] = language
    if (duration := _seconds(value.get("duration"))) is not None:
        facts["duration"] = duration
    segments = value.get("segments")
    if isinstance(segments, list) and len(segments) <= MAX_SEGMENTS:
        parts = [_segment(number, part) for number, part in enumerate(segments)]
        if parts and None not in parts:
            facts["segments"] = parts
    return facts


def _segment(number: int, part: Any) -> dict[str, Any] | None:
    if not isinstance(part, dict):
        return None
    start, end, text = _seconds(part.get("start")), _seconds(part.get("end")), part.get("text")
    if start is None or end is None or not isinstance(text, str):
        return None
    return {"id": number, "start": start, "end": end, "text": text[:MAX_SEGMENT_CHARS]}


def _usage(value: Mapping[str, Any]) -> tuple[Usage, ...]:
    stated = value.get("usage")
    stated = stated if isinstance(stated, dict) else {}
    seconds = _seconds(stated.get("seconds"))
    if seconds is None:
        seconds = _seconds(value.get("duration"))
    uses = [] if seconds is None else [Usage("audio", math.ceil(seconds), "second")]
    names = ("input_tokens", "output_tokens")
    return (*uses, *(Usage(name, stated[name], "token") for name in names if isinstance(stated.get(name), int)))


def _seconds(value: Any) -> float | None:
    """A number of seconds that can be true; some servers write it as a text."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= MAX_SECONDS else None
