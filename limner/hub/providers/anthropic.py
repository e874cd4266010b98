"""Anthropic's Messages API (version 2023-06-01): texts, pictures described, tools, structured answers, streams.

Class C: the interface knows neither an idempotency key nor a look-up of a message.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from limner.egress.credentials import KeyForm
from limner.egress.fixed import FixedDoor
from limner.hub.providers import asking, rows, verdicts
from limner.hub.providers.base import CallClass, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.conversation import Conversation, Part, Picture, Text, Tool, ToolCall, ToolResult
from limner.hub.providers.kinds import AdapterKind, Tools
from limner.hub.providers.replies import (
    Arguments,
    Calls,
    Counts,
    Ended,
    Finish,
    Piece,
    Reply,
    Said,
    number,
    part,
    parts,
    reference,
)
from limner.hub.providers.texts import PICTURE_KIND
from limner.hub.providers.translating import Translator

VERSION = "2023-06-01"
ADDRESS = "https://api.anthropic.com/v1"
AUTH = KeyForm("x-api-key")
OPTIONS = frozenset({"temperature", "top_p", "stop"})
CONFIG = ("timeout_s",)
PICTURES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
FINISHES: dict[str, Finish] = {
    "end_turn": "stop", "stop_sequence": "stop", "pause_turn": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length", "tool_use": "tool_calls", "refusal": "content_filter",
}  # fmt: skip
CODES = {
    "authentication_error": "provider_auth", "permission_error": "provider_auth", "billing_error": "provider_quota_exhausted",
    "not_found_error": "provider_model_unknown", "request_too_large": "provider_request_too_large",
    "rate_limit_error": "provider_rate_limited", "api_error": "provider_unavailable", "timeout_error": "provider_unavailable",
    "overloaded_error": "provider_unavailable", "invalid_request_error": "provider_refused",
}  # fmt: skip
"""By the type that stands in an error."""
STATUSES = {"api_error": 500, "timeout_error": 504, "overloaded_error": 529, "rate_limit_error": 429}
"""Of errors in a stream, which have none of their own."""
LONG_WORDS = ("prompt is too long", "context window", "context limit", "exceed context")
CREDIT_WORDS = ("credit balance",)
CONTENT_WORDS = ("content filtering policy",)
MAX_LOOKED_AT = 4096
LIST_S, LIST_BYTES = 15.0, 4 * 1024 * 1024


class Speech:
    """POST /messages (translating.Speech)."""

    auth = AUTH
    options = OPTIONS
    config_keys = CONFIG

    def path(self, model: str, *, stream: bool) -> str:  # noqa: ARG002  (the model stands in the body)
        return "/messages"

    def headers(self) -> dict[str, str]:
        return {"anthropic-version": VERSION}

    def body(self, asked: Conversation, model: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
        temperature = asked.options.get("temperature")
        if isinstance(temperature, int | float) and temperature > 1:
            raise verdicts.unsupported("a temperature above 1")
        if asked.as_json and asked.schema is None:
            raise verdicts.unsupported("response_format json_object; json_schema it takes")
        said: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "messages": [{"role": turn.role, "content": [_block(part) for part in turn.parts]} for turn in asked.turns],
        }
        if asked.system:
            said["system"] = [{"type": "text", "text": text} for text in asked.system]
        if asked.tools:
            said["tools"] = [_tool(tool) for tool in asked.tools]
            said |= _choice(asked)
        if asked.schema is not None:
            said["output_config"] = {"format": {"type": "json_schema", "schema": asked.schema}}
        names = {"temperature": "temperature", "top_p": "top_p", "stop": "stop_sequences"}
        said |= {names[name]: value for name, value in asked.options.items()}
        return said | ({"stream": True} if stream else {})

    def reply(self, value: Mapping[str, Any]) -> Reply:
        if value.get("type") == "error":
            raise _failed(value)
        if not isinstance(value.get("content"), list):
            raise verdicts.invalid("no content")
        texts, calls = [], []
        for block in parts(value, "content"):
            if block.get("type") == "text":
                texts.append(_text(block, "text"))
            elif block.get("type") == "tool_use":
                calls.append(ToolCall(_text(block, "id"), _text(block, "name"), part(block, "input")))
        finish = FINISHES.get(str(value.get("stop_reason")), "stop")
        return Reply("".join(texts), tuple(calls), finish, _counts(part(value, "usage")), reference(value.get("id")))

    def ear(self) -> "Ear":
        return Ear()

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        try:
            value = orjson.loads(body)
        except ValueError:
            value = None
        return verdicts.failure(_code(status, part(value, "error")), status, verdicts.retry_after_s(headers))


class Ear:
    """One stream (translating.Ear). What it does not know it leaves out: the interface may send events of new types."""

    def __init__(self) -> None:
        self.id: str | None = None
        self._stated: dict[str, Any] = {}
        self._finish: Finish = "stop"
        self._calls: dict[Any, int] = {}
        self._silent: set[int] = set()
        """Calls of which no argument was said yet."""

    def hear(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        kind = event.get("type")
        if kind == "message_start":
            message = part(event, "message")
            self.id = reference(message.get("id"))
            self._stated |= part(message, "usage")
        elif kind == "content_block_start":
            yield from self._begin(event)
        elif kind == "content_block_delta":
            yield from self._more(event)
        elif kind == "content_block_stop":
            yield from self._close(event)
        elif kind == "message_delta":
            self._finish = FINISHES.get(str(part(event, "delta").get("stop_reason")), self._finish)
            self._stated |= {name: value for name, value in part(event, "usage").items() if value is not None}
        elif kind == "message_stop":
            yield Ended(self._finish, _counts(self._stated))
        elif kind == "error":
            raise _failed(event)

    def _begin(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        block = part(event, "content_block")
        if block.get("type") == "text" and block.get("text"):
            yield Said(_text(block, "text"))
        elif block.get("type") == "tool_use":
            index = self._calls[str(event.get("index"))] = len(self._calls)
            self._silent.add(index)
            yield Calls(index, _text(block, "id"), _text(block, "name"))

    def _more(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        delta, index = part(event, "delta"), self._calls.get(str(event.get("index")))
        if delta.get("type") == "text_delta":
            if text := _text(delta, "text"):
                yield Said(text)
        elif delta.get("type") == "input_json_delta" and index is not None and (text := _text(delta, "partial_json")):
            self._silent.discard(index)
            yield Arguments(index, text)

    def _close(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        index = self._calls.get(str(event.get("index")))
        if index in self._silent:
            self._silent.discard(index)
            yield Arguments(index, "{}")


class Adapter:
    """Jobs of texts, and of pictures described."""

    name = "anthropic"
    call_class = CallClass.C

    def __init__(self, tools: Tools) -> None:
        self._translator = Translator(tools, Speech())

    async def run(self, call: ProviderCall) -> ProviderResult:
        if call.kind not in KINDS:
            raise ProviderError("unsupported_kind", f"This provider does not run {call.kind}.", "fatal")
        return await self._translator.run(call)


async def list_models(door: FixedDoor, base_url: str | None, config: Mapping[str, Any]) -> list[str]:
    """GET /models, the first thousand, by name. Raises ConfigInvalid and ProviderError."""
    check(base_url, config)
    url = f"{rows.address(base_url)}/models?limit=1000"
    headers = {"Accept": "application/json", "anthropic-version": VERSION}
    answer = await asking.ask(door, "GET", url, headers=headers, timeout_s=LIST_S, max_bytes=LIST_BYTES, auth=AUTH)
    if answer.status != 200:
        raise Speech().refusal(answer.status, answer.headers, answer.body)
    found = (reference(model.get("id")) for model in parts(asking.read_object(answer.body), "data"))
    return sorted(name for name in found if name is not None)


def check(base_url: str | None, config: Mapping[str, Any]) -> None:
    """Raises ConfigInvalid."""
    rows.check_config(config, CONFIG)
    rows.address(base_url)


def _block(said: Part) -> dict[str, Any]:
    if isinstance(said, Text):
        return {"type": "text", "text": said.text}
    if isinstance(said, ToolCall):
        return {"type": "tool_use", "id": said.id, "name": said.name, "input": said.arguments}
    if isinstance(said, ToolResult):
        return {"type": "tool_result", "tool_use_id": said.id, "content": said.text}
    return {"type": "image", "source": _source(said)}


def _source(picture: Picture) -> dict[str, Any]:
    if picture.url:
        return {"type": "url", "url": picture.url}
    if picture.media_type not in PICTURES:
        raise verdicts.unsupported("pictures that are no JPEG, PNG, GIF or WebP")
    return {"type": "base64", "media_type": picture.media_type, "data": picture.data}


def _tool(tool: Tool) -> dict[str, Any]:
    schema = {"type": "object", **(tool.parameters or {})}
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "input_schema": schema}


def _choice(asked: Conversation) -> dict[str, Any]:
    kinds = {"auto": "auto", "none": "none", "required": "any"}
    if asked.forced is not None:
        choice: dict[str, Any] = {"type": "tool", "name": asked.forced}
    elif asked.choice is None and asked.parallel is not False:
        return {}
    else:
        choice = {"type": kinds[asked.choice or "auto"]}
    if asked.parallel is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tool_choice": choice}


def _counts(stated: Mapping[str, Any]) -> Counts:
    """What was read is stated in three: anew, into a cache, and from one."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    anew, kept, cached = (number(stated, name) for name in names)
    read = None if anew is None else anew + (kept or 0) + (cached or 0)
    return Counts(read, cached, number(stated, "output_tokens"))


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise verdicts.invalid(f"no {name}")
    return found


def _failed(value: Mapping[str, Any]) -> ProviderError:
    """An error that came with status 200, or in a stream."""
    told = part(value, "error")
    status = STATUSES.get(str(told.get("type")), 500)
    return verdicts.failure(_code(status, told), status)


def _code(status: int, told: Mapping[str, Any]) -> str:
    """What the body says is more exact than the status."""
    code = CODES.get(str(told.get("type"))) or verdicts.by_status(status)
    words = str(told.get("message"))[:MAX_LOOKED_AT].lower()
    if code != "provider_refused":
        return code
    found = (
        (any(word in words for word in LONG_WORDS), "context_too_long"),
        (any(word in words for word in CREDIT_WORDS), "provider_quota_exhausted"),
        (any(word in words for word in CONTENT_WORDS), "content_refused"),
    )
    return next((better for holds, better in found if holds), code)


KINDS = frozenset({"text.generate", PICTURE_KIND})
ADAPTER = AdapterKind(
    name=Adapter.name,
    call_class=Adapter.call_class,
    kinds=KINDS,
    check=check,
    make=Adapter,
    answering=lambda tools: Translator(tools, Speech()),
    list_models=list_models,
    default_base_url=ADDRESS,
    auth=AUTH,
)
