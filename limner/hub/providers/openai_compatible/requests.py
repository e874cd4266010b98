"""From a parsed, priced request to what goes over the wire: a path and a body, and nothing that was not asked for."""

import base64
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from limner.hub.pricing import MAX_OUTPUTS_FIELD
from limner.hub.providers import texts
from limner.hub.providers.base import Blob, ProviderCall, ProviderError
from limner.hub.providers.openai_compatible.config import Config

OURS = frozenset({"prompt", "system", "images", "mask", MAX_OUTPUTS_FIELD})
Answers = Literal["texts", "pictures", "vectors"]
CHAT_FIELDS = frozenset(
    {"temperature", "top_p", "max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty", "reasoning_effort"}
)
EMBEDDING_FIELDS = frozenset({"text", "dimensions"})
IMAGE_FIELDS = frozenset({"size", "quality", "style", "background"})


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. `fields`: the names in it, which an answer may call wrong; `pictures`: how many are asked for, else 0."""

    path: str
    content_type: str
    body: bytes
    fields: frozenset[str]
    answers: Answers
    pictures: int = 0


def build(call: ProviderCall, config: Config) -> Request:
    """The request of a call.

    Raises ProviderError: unsupported_kind and unsupported_input (fatal: this provider cannot, another may),
    prompt_required and image_required (bad_request).
    """
    builder = _BUILDERS.get(call.kind)
    if builder is None:
        raise ProviderError("unsupported_kind", f"This provider does not run {call.kind}.", "fatal")
    return builder(call, config)


def _chat(call: ProviderCall, config: Config) -> Request:
    given = _given(call, CHAT_FIELDS, texts.FIELDS)
    if call.mask is not None:
        raise _unsupported("mask")
    wanted = {**call.input, "prompt": _prompt(call, texts.DESCRIBE)} if call.kind == texts.PICTURE_KIND else call.input
    messages: list[dict[str, Any]] = [*texts.messages(wanted)]
    if not messages[-1]["content"].strip():
        raise ProviderError("prompt_required", "This model needs a prompt.", "bad_request")
    if call.kind == "image.describe" and not call.images:
        raise ProviderError("image_required", "This model needs a picture.", "bad_request")
    if call.images:
        pictures = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in call.images]
        messages[-1]["content"] = [{"type": "text", "text": messages[-1]["content"]}, *pictures]
    if "max_tokens" in given:
        given[config.max_tokens_field] = given.pop("max_tokens")
    if (count := _count(call)) > 1:
        given["n"] = count
    return _json("/chat/completions", {"model": call.provider_model, "messages": messages} | given, "texts")


def _embed(call: ProviderCall, _: Config) -> Request:
    if call.images or call.mask is not None:
        raise _unsupported("images")
    given = _given(call, EMBEDDING_FIELDS)
    text = given.pop("text", None)
    if not isinstance(text, str) or not text.strip():
        raise ProviderError("text_required", "This model needs a text.", "bad_request")
    asked = {"model": call.provider_model, "input": text, "encoding_format": "float"}
    return _json("/embeddings", asked | given, "vectors")


def _generate(call: ProviderCall, config: Config) -> Request:
    if call.images or call.mask is not None:
        raise _unsupported("images")
    return _json("/images/generations", _picture_fields(call, config), "pictures", _count(call))


def _edit(call: ProviderCall, config: Config) -> Request:
    """multipart/form-data (RFC 7578), as the interface wants it: `image` for one, `image[]` for several."""
    if not call.images:
        raise ProviderError("image_required", "This model needs a picture.", "bad_request")
    fields = _picture_fields(call, config)
    name = "image" if len(call.images) == 1 else "image[]"
    files = [(name, image) for image in call.images] + ([("mask", call.mask)] if call.mask is not None else [])
    boundary = secrets.token_hex(16)
    body = _form(boundary, {field: str(value) for field, value in fields.items()}, files)
    named = frozenset({*fields, "image", "mask"})
    return Request("/images/edits", f"multipart/form-data; boundary={boundary}", body, named, "pictures", _count(call))


def _picture_fields(call: ProviderCall, config: Config) -> dict[str, Any]:
    given = _given(call, IMAGE_FIELDS)
    for name, value in given.items():
        if not isinstance(value, str):  # the interface's sizes are texts such as "1024x1024"
            raise _unsupported(name)
    asked = {"model": call.provider_model, "prompt": _prompt(call), "n": _count(call)} | given
    return asked | ({"response_format": "b64_json"} if config.asks_base64 else {})


def _given(call: ProviderCall, known: frozenset[str], used: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What the request sets of the known fields. What it sets of others would be priced and not executed: refused.

    `used`: fields that are in the request in other words.
    """
    given = {name: value for name, value in call.input.items() if value is not None and name not in OURS | used}
    if unknown := sorted(set(given) - known):
        raise _unsupported(unknown[0])
    return given


def _prompt(call: ProviderCall, otherwise: str | None = None) -> str:
    prompt = call.input.get("prompt", otherwise)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ProviderError("prompt_required", "This model needs a prompt.", "bad_request")
    return prompt


def _count(call: ProviderCall) -> int:
    return int(call.input.get(MAX_OUTPUTS_FIELD, 1))


def _unsupported(name: str) -> ProviderError:
    return ProviderError("unsupported_input", f"This provider does not take {name[:100]}.", "fatal")


def _json(path: str, fields: Mapping[str, Any], answers: Answers, pictures: int = 0) -> Request:
    return Request(path, "application/json", orjson.dumps(fields), frozenset(fields), answers, pictures)


def _data_uri(image: Blob) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _form(boundary: str, fields: Mapping[str, str], files: list[tuple[str, Blob]]) -> bytes:
    """Names are limner's own and need no escaping; a random boundary of 128 bits stands in nobody's prompt."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for number, (name, blob) in enumerate(files):
        kind = blob.media_type.partition("/")[2]
        head = f'Content-Disposition: form-data; name="{name}"; filename="{number}.{kind}"\r\nContent-Type: {blob.media_type}'
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + blob.data + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


_BUILDERS: dict[str, Callable[[ProviderCall, Config], Request]] = {
    "text.generate": _chat,
    "text.embed": _embed,
    "image.describe": _chat,
    "image.generate": _generate,
    "image.edit": _edit,
}
