"""A chat as OpenAI's interface says it, read into parts that other interfaces have words for.

What an interface has no words for is refused with the field's name and never dropped: it would be priced and not executed.
"""

import base64
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from limner.hub.pricing import MAX_OUTPUTS_FIELD
from limner.hub.providers import texts, verdicts
from limner.hub.providers.base import Blob, ProviderCall, ProviderError

MUTE = frozenset(
    {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "user", "metadata", "store", "service_tier",
     "modalities", "prompt_cache_key", "safety_identifier", "tools", "tool_choice", "parallel_tool_calls", "response_format"}
)  # fmt: skip
"""What is read by itself, and what changes nothing of an answer."""
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "top_logprobs": (0,),
}  # fmt: skip
"""Values that ask for nothing."""
DATA_URI = re.compile(r"data:([a-z]+/[a-z0-9.+-]{1,60});base64,", re.ASCII)
MAX_STOPS = 16


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """By its bytes in base64 and their media type, or by an address."""

    media_type: str = ""
    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`signature`: what a provider wants back with the call, as it gave it."""

    id: str
    name: str
    arguments: dict[str, Any]
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`name`: of the function that was called."""

    id: str
    name: str
    text: str


Part = Text | Picture | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Turn:
    """Of one side, with at least one part; the other side's comes next."""

    role: Literal["user", "assistant"]
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """`choice`: whether tools may or must be called; `forced`: which one. `as_json`: the answer is to be JSON, of `schema` if there is one.

    `options`: of those that the interface knows, what the request sets; `stop` is a list.
    """

    system: tuple[str, ...]
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...]
    choice: Literal["auto", "none", "required"] | None
    forced: str | None
    parallel: bool | None
    as_json: bool
    schema: dict[str, Any] | None
    options: Mapping[str, Any]


def read(value: Mapping[str, Any], known: Collection[str]) -> Conversation:
    """A request of /v1/chat/completions. `known`: the options that the provider takes.

    Raises ProviderError: unsupported_input (fatal: another provider may take it), bad_message and prompt_required (bad_request).
    """
    options = _options(value, known)
    system, turns = _said(value.get("messages"))
    if not turns:
        raise ProviderError("prompt_required", "This model needs a prompt.", "bad_request")
    choice, forced = _choice(value.get("tool_choice"))
    as_json, schema = _format(value.get("response_format"))
    parallel = value.get("parallel_tool_calls")
    return Conversation(
        system=system, turns=turns, tools=_tools(value.get("tools")), choice=choice, forced=forced,
        parallel=parallel if isinstance(parallel, bool) else None, as_json=as_json, schema=schema, options=options,
    )  # fmt: skip


def of_job(call: ProviderCall, known: Collection[str]) -> Conversation:
    """What a job of texts or of a picture's description asks. Raises as `read`, and image_required (bad_request)."""
    ours = texts.FIELDS | {"images", "mask", "max_tokens", MAX_OUTPUTS_FIELD}
    given = {name: value for name, value in call.input.items() if value is not None and name not in ours}
    if call.mask is not None:
        raise verdicts.unsupported("mask")
    if int(call.input.get(MAX_OUTPUTS_FIELD, 1)) > 1:
        raise verdicts.unsupported(MAX_OUTPUTS_FIELD)
    if call.kind == texts.PICTURE_KIND and not call.images:
        raise ProviderError("image_required", "This model needs a picture.", "bad_request")
    wanted = dict(call.input)
    if call.kind == texts.PICTURE_KIND:
        wanted["prompt"] = wanted.get("prompt") or texts.DESCRIBE
    found = read({"messages": texts.messages(wanted), **given}, known)
    found.turns[-1].parts.extend(picture(image) for image in call.images)
    return found


def picture(image: Blob) -> Picture:
    """A picture of a job, as it goes over the wire."""
    return Picture(image.media_type, base64.b64encode(image.data).decode())


def _options(value: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, given in value.items():
        if given is None or name in MUTE:
            continue
        if name in known:
            found[name] = given
        elif given not in DEFAULTS.get(name, ()):
            raise verdicts.unsupported(name if name.isascii() and name.isidentifier() else "a field of the request")
    if "stop" in found:
        stops = [found["stop"]] if isinstance(found["stop"], str) else found["stop"]
        if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(stop, str) for stop in stops):
            raise _wrong("stop must be a text, or a list of texts")
        found["stop"] = stops
    return found


def _said(messages: Any) -> tuple[tuple[str, ...], tuple[Turn, ...]]:
    """What holds for every answer, and the turns. Messages of one side that follow each other are one turn."""
    system: list[str] = []
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for message in messages if isinstance(messages, list) else ():
        role = message.get("role") if isinstance(message, dict) else None
        if role in {"system", "developer"}:
            system += _texts(message, "a system message")
            continue
        if role == "user":
            parts = _parts(message.get("content"))
        elif role == "assistant":
            calls = _calls(message)
            names |= {call.id: call.name for call in calls}
            parts = [*_parts(message.get("content")), *calls]
        elif role == "tool":
            parts = [_result(message, names)]
        else:
            raise _wrong(
                "a message has a role that there is not: system, developer, user, assistant and tool are known"
            )
        side: Literal["user", "assistant"] = "assistant" if role == "assistant" else "user"
        if turns and turns[-1].role == side:
            turns[-1].parts.extend(parts)
        elif parts:
            turns.append(Turn(side, parts))
    return tuple(system), tuple(turns)


def _parts(content: Any) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)] if content.strip() else []
    if not isinstance(content, list):
        raise _wrong("the content of a message must be a text or a list of parts")
    return [part for given in content if (part := _part(given)) is not None]


def _part(given: Any) -> Part | None:
    if not isinstance(given, dict):
        raise _wrong("a part of a message must be an object")
    kind = given.get("type")
    if kind in {"text", "refusal"}:
        text = given.get(kind)
        if not isinstance(text, str):
            raise _wrong("a part of a message has no text")
        return Text(text) if text.strip() else None
    if kind == "image_url":
        address = given.get("image_url")
        return _picture(address.get("url") if isinstance(address, dict) else address)
    if kind in {"input_audio", "file"}:
        raise verdicts.unsupported(f"{kind} in messages")
    raise _wrong("a part of a message has a type that there is not")


def _picture(url: Any) -> Picture:
    if not isinstance(url, str):
        raise _wrong("image_url must have a url")
    found = DATA_URI.match(url)
    if found is not None:
        return Picture(found[1], url[found.end() :])
    if url.startswith("https://"):
        return Picture(url=url)
    raise _wrong("image_url must be a data URI in base64, or an address of https")


def _calls(message: Mapping[str, Any]) -> list[ToolCall]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise _wrong("tool_calls must be a list")
    return [_call(call) for call in calls]


def _call(given: Any) -> ToolCall:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(given.get("id"), str):
        raise _wrong("a tool call needs an id and a function")
    name, text = function.get("name"), function.get("arguments") or "{}"
    try:
        arguments = orjson.loads(text) if isinstance(text, str) else None
    except ValueError:
        arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise _wrong("a tool call needs a function's name, and its arguments as a JSON object")
    extra = given.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return ToolCall(given["id"], name, arguments, signature if isinstance(signature, str) else None)


def _result(message: Mapping[str, Any], names: Mapping[str, str]) -> ToolResult:
    of = message.get("tool_call_id")
    if not isinstance(of, str) or of not in names:
        raise _wrong("a tool's message must have the tool_call_id of a call before it")
    return ToolResult(of, names[of], "".join(_texts(message, "a tool's message")))


def _texts(message: Mapping[str, Any], where: str) -> list[str]:
    parts = _parts(message.get("content"))
    texts = [part.text for part in parts if isinstance(part, Text)]
    if len(texts) < len(parts):
        raise verdicts.unsupported(f"pictures in {where}")
    return texts


def _tools(given: Any) -> tuple[Tool, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise _wrong("tools must be a list")
    return tuple(_tool(tool) for tool in given)


def _tool(given: Any) -> Tool:
    if not isinstance(given, dict) or given.get("type") != "function":
        raise verdicts.unsupported("tools that are no functions")
    function = given.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise _wrong("a tool needs a function with a name")
    words, parameters = function.get("description") or "", function.get("parameters")
    if not isinstance(words, str) or not isinstance(parameters, dict | None):
        raise _wrong("a function's description must be a text, and its parameters a JSON schema")
    return Tool(name, words, parameters)


def _choice(given: Any) -> tuple[Literal["auto", "none", "required"] | None, str | None]:
    if given is None or given in ("auto", "none", "required"):
        return given, None
    function = given.get("function") if isinstance(given, dict) and given.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise verdicts.unsupported("this tool_choice")
    return "required", name


def _format(given: Any) -> tuple[bool, dict[str, Any] | None]:
    kind = given.get("type") if isinstance(given, dict) else given
    if kind is None or kind == "text":
        return False, None
    if kind == "json_object":
        return True, None
    described = given.get("json_schema") if isinstance(given, dict) and kind == "json_schema" else None
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise verdicts.unsupported("this response_format")
    return True, schema


def _wrong(words: str) -> ProviderError:
    return ProviderError("bad_message", f"The request is not understood: {words}.", "bad_request")
