"""An answer of status 200, read strictly: outputs, what they consumed, and the name it may be asked after by."""

import binascii
import re
from collections.abc import Mapping
from typing import Any

from limner.hub.providers import verdicts
from limner.hub.providers.base import Output, ProviderError, ProviderResult, Usage

REFERENCE = re.compile(r"[!-~]{1,200}", re.ASCII)
FINISH_REASONS = ("stop", "length")
FILTERED = "content_filter"
MAX_CHOICES = 128
MAX_DIMENSIONS = 16_384
MAX_NUMBER = 1e30


def read_texts(value: Mapping[str, Any], headers: Mapping[str, str]) -> ProviderResult:
    """The texts of a chat completion, in the order of its choices; one that is empty or was filtered is left out.

    Raises ProviderError: content_refused (content) where the provider's filter left nothing; answer_cut_off (fatal)
    where the limit of tokens did; provider_answer_empty and provider_answer_invalid (retryable).
    """
    outputs: list[Output] = []
    reasons = []
    for choice in _objects(value, "choices"):
        message = choice.get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content", ""), str | None):
            raise verdicts.invalid("a choice without a message")
        reason, text = choice.get("finish_reason"), message.get("content") or ""
        refused = bool(message.get("refusal")) and not text.strip()
        reasons.append(FILTERED if refused else reason)
        if text.strip() and reason != FILTERED:
            facts = {"finish_reason": reason} if reason in FINISH_REASONS else {}
            outputs.append(Output(len(outputs), "text", text=text, facts=facts))
    if not outputs:
        raise _nothing(reasons)
    return ProviderResult(tuple(outputs), _text_usage(value), task_id=_reference(value, headers))


def read_pictures(value: Mapping[str, Any], headers: Mapping[str, str]) -> ProviderResult:
    """The pictures of an images answer; one that is no base64 (RFC 4648) is left out. Decoding them is media's.

    Raises ProviderError: provider_answer_by_address (fatal) for pictures that would have to be fetched;
    provider_answer_empty and provider_answer_invalid (retryable).
    """
    items = _objects(value, "data")
    found = [picture for item in items if (picture := _picture(item)) is not None]
    if not found and any(isinstance(item.get("url"), str) for item in items):
        words = "The provider answers with addresses of pictures instead of pictures."
        raise ProviderError("provider_answer_by_address", words, "fatal")
    if not found and items:
        raise verdicts.invalid("a picture that is no base64")
    if not found:
        raise verdicts.empty()
    outputs = tuple(Output(index, "image", data=data) for index, data in enumerate(found))
    return ProviderResult(outputs, _picture_usage(value), task_id=_reference(value, headers))


def read_vectors(value: Mapping[str, Any], headers: Mapping[str, str]) -> ProviderResult:
    """The vectors of an embeddings answer, in its order. Raises ProviderError provider_answer_empty and -_invalid (retryable)."""
    items = _objects(value, "data")
    vectors = [item.get("embedding") for item in items]
    if not all(_is_vector(vector) for vector in vectors):
        raise verdicts.invalid("an embedding that is no list of numbers")
    if not vectors:
        raise verdicts.empty()
    outputs = tuple(Output(index, "vector", vector=vector) for index, vector in enumerate(vectors))
    read = _number(_dict(value, "usage"), "prompt_tokens")
    return ProviderResult(outputs, (Usage("input_tokens", read, "token"),), task_id=_reference(value, headers))


def _is_vector(value: Any) -> bool:
    """Numbers, some of them not zero; JSON knows no infinity, but 1e999 is one."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_DIMENSIONS:
        return False
    numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    return numbers and any(value) and all(abs(number) < MAX_NUMBER for number in value)


def _objects(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise verdicts.invalid(f"no {name}")
    return found[:MAX_CHOICES]


def _picture(item: Mapping[str, Any]) -> bytes | None:
    encoded = item.get("b64_json")
    if not isinstance(encoded, str) or not encoded:
        return None
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:  # binascii.Error, or a character beyond ASCII
        return None


def _nothing(reasons: list[Any]) -> ProviderError:
    """Why no choice had a text."""
    if FILTERED in reasons:
        return verdicts.refused()
    if "length" in reasons:
        return verdicts.cut_off()
    return verdicts.empty()


def _text_usage(value: Mapping[str, Any]) -> tuple[Usage, ...]:
    """Tokens read, those of them that were cached, and tokens written; None for what is not stated as a number."""
    stated = _dict(value, "usage")
    read, written = _number(stated, "prompt_tokens"), _number(stated, "completion_tokens")
    cached = _number(_dict(stated, "prompt_tokens_details"), "cached_tokens")
    uses = [Usage("input_tokens", read, "token"), Usage("output_tokens", written, "token")]
    if cached:
        uses.append(Usage("cached_input_tokens", _part(cached, read), "token"))
    return tuple(uses)


def _part(cached: Any, read: Any) -> Any:
    """None where more was cached than read: one of the two is wrong."""
    return cached if read is not None and cached <= read else None


def _picture_usage(value: Mapping[str, Any]) -> tuple[Usage, ...]:
    """Tokens, of those models of pictures that count them; the others state no usage."""
    stated = _dict(value, "usage")
    names = ("input_tokens", "output_tokens")
    return tuple(Usage(name, _number(stated, name), "token") for name in names if name in stated)


def _number(stated: Mapping[str, Any], name: str) -> Any:
    """The number as stated, however absurd; None for anything else: no stranger's text goes further from here."""
    number = stated.get(name)
    return number if isinstance(number, int | float) else None


def _dict(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _reference(value: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    for found in (headers.get("x-request-id"), value.get("id")):
        if isinstance(found, str) and REFERENCE.fullmatch(found):
            return found
    return None
