"""Google's Gemini API: chats (speech), pictures made and edited by its models of pictures, vectors.

Class C: the interface knows neither an idempotency key nor a look-up of an answer.
"""

import base64
import binascii
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import orjson

from limner.egress.fixed import FixedDoor
from limner.egress.own_keys import SealedKey
from limner.hub import chat, routing
from limner.hub.catalog import Model, Route
from limner.hub.chat import Asked
from limner.hub.pricing import MAX_OUTPUTS_FIELD
from limner.hub.providers import asking, conversation, rows, verdicts
from limner.hub.providers.base import (
    CallClass,
    ConfigInvalid,
    Leave,
    Output,
    ProviderCall,
    ProviderError,
    ProviderResult,
    Usage,
)
from limner.hub.providers.gemini import errors
from limner.hub.providers.gemini.speech import AUTH, CONFIG, FILTERED, Speech, counts, inline, model_path
from limner.hub.providers.kinds import AdapterKind, Tools
from limner.hub.providers.replies import number, part, parts, reference
from limner.hub.providers.texts import PICTURE_KIND
from limner.hub.providers.translating import HEAD_START_S, Translator

ADDRESS = "https://generativelanguage.googleapis.com/v1beta"
MAX_TEXTS = 100
"""Vectors of one call."""
MAX_DIMENSIONS = 16_384
MAX_NUMBER = 1e30
PICTURE_FIELDS = frozenset({"prompt", "aspect_ratio", "size", "images", "mask", MAX_OUTPUTS_FIELD})
SIZES = {"1K": "1K", "2K": "2K", "4K": "4K", "1024x1024": "1K"}
"""Those that can be had exactly as they are asked for."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
LIST_S, LIST_BYTES = 15.0, 4 * 1024 * 1024
KINDS = frozenset({"text.generate", PICTURE_KIND, "text.embed", "image.generate", "image.edit"})


class Adapter:
    """Jobs."""

    name = "gemini"
    call_class = CallClass.C

    def __init__(self, tools: Tools) -> None:
        self._door = tools.door
        self._translator = Translator(tools, Speech())

    async def run(self, call: ProviderCall) -> ProviderResult:
        if call.kind in {"text.generate", PICTURE_KIND}:
            return await self._translator.run(call)
        if call.kind == "text.embed":
            return await self._embed(call)
        if call.kind in KINDS:
            return await self._paint(call)
        raise ProviderError("unsupported_kind", f"This provider does not run {call.kind}.", "fatal")

    async def _embed(self, call: ProviderCall) -> ProviderResult:
        _only(call, {"text", "dimensions"})
        text = call.input.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ProviderError("text_required", "This model needs a text.", "bad_request")
        body = _embedding(call.provider_model, [text], call.input.get("dimensions"))
        value = await self._ask(call, ":batchEmbedContents", body)
        (vector,) = _vectors(value, 1)
        return ProviderResult((Output(0, "vector", vector=vector),), (Usage("input_tokens", _read(value), "token"),))

    async def _paint(self, call: ProviderCall) -> ProviderResult:
        body = _picture(call)
        await call.progress(10, "asking")
        return _painted(await self._ask(call, ":generateContent", body))

    async def _ask(self, call: ProviderCall, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
        url = _address(call.base_url, call.config) + model_path(call.provider_model) + verb
        timeout_s = max(call.timeout_s - HEAD_START_S, call.timeout_s / 2)
        return await _asked(self._door, url, body, timeout_s, call.job_id, call.own_key)


class Answerer:
    """Calls that are answered at once: chats by the translator, vectors by batchEmbedContents (chat.Answering)."""

    def __init__(self, tools: Tools) -> None:
        self._door = tools.door
        self._translator = Translator(tools, Speech())

    async def whole(self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None) -> bytes:
        if asked.surface is not chat.EMBEDDINGS:
            return await self._translator.whole(route, asked, model, job_id, leave)
        texts, encoding = _texts(asked)
        url = _address(route.base_url, route.config) + model_path(route.provider_model) + ":batchEmbedContents"
        body = _embedding(route.provider_model, texts, asked.value.get("dimensions"))
        timeout_s = routing.timeout_s(route) or routing.CALL_TIMEOUT_S
        value = await _asked(self._door, url, body, timeout_s, job_id, route.own_key, leave)
        told: dict[str, Any] = {
            "object": "list", "model": asked.model,
            "data": [
                {"object": "embedding", "index": place, "embedding": _encoded(vector, encoding)}
                for place, vector in enumerate(_vectors(value, len(texts)))
            ],
        }  # fmt: skip
        read = _read(value)
        return orjson.dumps(told if read is None else told | {"usage": {"prompt_tokens": read, "total_tokens": read}})

    def stream(
        self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._translator.stream(route, asked, model, job_id, leave)


async def list_models(door: FixedDoor, base_url: str | None, config: Mapping[str, Any]) -> list[str]:
    """GET /models, the first thousand, by name. Raises ConfigInvalid and ProviderError."""
    check(base_url, config)
    url = f"{rows.address(base_url)}/models?pageSize=1000"
    headers = {"Accept": "application/json"}
    answer = await asking.ask(door, "GET", url, headers=headers, timeout_s=LIST_S, max_bytes=LIST_BYTES, auth=AUTH)
    if answer.status != 200:
        raise errors.refusal(answer.status, answer.headers, answer.body)
    found = (reference(model.get("name")) for model in parts(asking.read_object(answer.body), "models"))
    return sorted(name.removeprefix("models/") for name in found if name is not None)


def check(base_url: str | None, config: Mapping[str, Any]) -> None:
    """Raises ConfigInvalid."""
    rows.check_config(config, CONFIG)
    rows.address(base_url)


def _address(base_url: str | None, config: Mapping[str, Any]) -> str:
    try:
        check(base_url, config)
        return rows.address(base_url)
    except ConfigInvalid as error:
        raise verdicts.misconfigured(error) from None


async def _asked(
    door: FixedDoor, url: str, body: Mapping[str, Any], timeout_s: float, job_id: UUID, own_key: SealedKey | None,
    leave: Leave = None,
) -> dict[str, Any]:  # fmt: skip
    headers = {"Content-Type": "application/json", "Accept": "application/json", "X-Client-Request-Id": str(job_id)}
    answer = await asking.ask(
        door, "POST", url, headers=headers, body=orjson.dumps(body), timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES, auth=AUTH,
        own_key=own_key, leave=leave,
    )  # fmt: skip
    if answer.status != 200:
        raise errors.refusal(answer.status, answer.headers, answer.body)
    value = asking.read_object(answer.body)
    if value.get("error"):
        raise errors.failure(value, 500)
    return value


def _only(call: ProviderCall, known: set[str] | frozenset[str]) -> None:
    """What a request sets of other fields would be priced and not executed: refused."""
    if unknown := sorted(name for name, value in call.input.items() if value is not None and name not in known):
        raise verdicts.unsupported(unknown[0])


# Pictures


def _picture(call: ProviderCall) -> dict[str, Any]:
    _only(call, PICTURE_FIELDS)
    if call.mask is not None:
        raise verdicts.unsupported("mask")
    if int(call.input.get(MAX_OUTPUTS_FIELD, 1)) > 1:
        raise verdicts.unsupported(f"{MAX_OUTPUTS_FIELD} above 1")
    prompt = call.input.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ProviderError("prompt_required", "This model needs a prompt.", "bad_request")
    if call.kind == "image.edit" and not call.images:
        raise ProviderError("image_required", "This model needs a picture.", "bad_request")
    shape = {}
    if (ratio := call.input.get("aspect_ratio")) is not None:
        shape["aspectRatio"] = ratio
    if (size := call.input.get("size")) is not None:
        if not isinstance(size, str) or size not in SIZES:
            raise verdicts.unsupported("size but for 1K, 2K, 4K and 1024x1024")
        shape["imageSize"] = SIZES[size]
        if size == "1024x1024":
            shape["aspectRatio"] = "1:1"
    said = [{"text": prompt}, *(inline(conversation.picture(image)) for image in call.images)]
    config: dict[str, Any] = {"responseModalities": ["TEXT", "IMAGE"]} | ({"imageConfig": shape} if shape else {})
    return {"contents": [{"role": "user", "parts": said}], "generationConfig": config}


def _painted(value: Mapping[str, Any]) -> ProviderResult:
    """Pictures as base64; decoding them is media's. Raises ProviderError content_refused, provider_answer_empty and -_invalid."""
    candidates = parts(value, "candidates")
    if not candidates and part(value, "promptFeedback").get("blockReason"):
        raise verdicts.failure("content_refused", 200)
    if not candidates:
        raise verdicts.invalid("no candidates")
    said = parts(part(candidates[0], "content"), "parts")
    found = [data for item in said if item.get("thought") is not True and (data := _decoded(part(item, "inlineData")))]
    if not found:
        raise verdicts.refused() if candidates[0].get("finishReason") in FILTERED else verdicts.empty()
    outputs = tuple(Output(index, "image", data=data) for index, data in enumerate(found))
    return ProviderResult(
        outputs, counts(part(value, "usageMetadata")).usage(), task_id=reference(value.get("responseId"))
    )


def _decoded(inline_data: Mapping[str, Any]) -> bytes | None:
    data = inline_data.get("data")
    if not isinstance(data, str):
        return None
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        return None


# Vectors


def _embedding(model: str, texts: Sequence[str], dimensions: Any) -> dict[str, Any]:
    shorter = {} if dimensions is None else {"outputDimensionality": dimensions}
    name = model_path(model)[1:]
    return {"requests": [{"model": name, "content": {"parts": [{"text": text}]}, **shorter} for text in texts]}


def _texts(asked: Asked) -> tuple[list[str], str]:
    """The texts of a call and how vectors are to be written. Raises ProviderError."""
    known = {"model", "input", "dimensions", "encoding_format", "user"}
    if unknown := sorted(name for name, value in asked.value.items() if value is not None and name not in known):
        raise verdicts.unsupported(unknown[0] if unknown[0].isidentifier() else "a field of the request")
    given = asked.value["input"]
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        raise verdicts.unsupported("tokens as numbers; texts it takes")
    if len(texts) > MAX_TEXTS:
        raise verdicts.unsupported(f"more than {MAX_TEXTS} texts at once")
    encoding = asked.value.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise verdicts.unsupported("an encoding_format but float and base64")
    return texts, encoding


def _vectors(value: Mapping[str, Any], count: int) -> list[list[float]]:
    vectors = [_numbers(found.get("values")) for found in parts(value, "embeddings")]
    if len(vectors) != count:
        raise verdicts.invalid("not as many vectors as texts")
    return vectors


def _numbers(values: Any) -> list[float]:
    """Some of them not zero; JSON knows no infinity, but 1e999 is one."""
    if not isinstance(values, list) or not 0 < len(values) <= MAX_DIMENSIONS or not any(values):
        raise verdicts.invalid("an embedding that is no list of numbers")
    if not all(type(number) in (int, float) and abs(number) < MAX_NUMBER for number in values):
        raise verdicts.invalid("an embedding that is no list of numbers")
    return values


def _read(value: Mapping[str, Any]) -> Any:
    """Tokens, of the models that count them."""
    return number(part(value, "usageMetadata"), "promptTokenCount")


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    """As numbers, or as little-endian floats of 32 bits in base64, which is what OpenAI's own clients ask for."""
    return vector if encoding == "float" else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ADAPTER = AdapterKind(
    name=Adapter.name,
    call_class=Adapter.call_class,
    kinds=KINDS,
    check=check,
    make=Adapter,
    answering=Answerer,
    list_models=list_models,
    own_keys=True,
    default_base_url=ADDRESS,
    auth=AUTH,
)
