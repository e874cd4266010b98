"""What a model of another interface answered, told as OpenAI's interface tells it, whole or in pieces; and as the result of a job."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from limner.hub.chat_stream import SO_FAR
from limner.hub.providers import verdicts
from limner.hub.providers.base import Output, ProviderResult, Usage
from limner.hub.providers.conversation import ToolCall

Finish = Literal["stop", "length", "tool_calls", "content_filter"]
MAX_REFERENCE = 200


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens as a provider states them, None where it states none: read (cached ones among them), cached, written."""

    read: Any = None
    cached: Any = None
    written: Any = None

    def told(self) -> dict[str, Any] | None:
        """As OpenAI's interface says it; None where reading or writing was not counted."""
        if not isinstance(self.read, int) or not isinstance(self.written, int):
            return None
        told: dict[str, Any] = {
            "prompt_tokens": self.read, "completion_tokens": self.written, "total_tokens": self.read + self.written,
        }  # fmt: skip
        return told if self.cached is None else told | {"prompt_tokens_details": {"cached_tokens": self.cached}}

    def usage(self) -> tuple[Usage, ...]:
        """The same for a job."""
        uses = [Usage("input_tokens", self.read, "token"), Usage("output_tokens", self.written, "token")]
        if self.cached:
            true = isinstance(self.read, int) and isinstance(self.cached, int) and self.cached <= self.read
            uses.append(Usage("cached_input_tokens", self.cached if true else -1, "token"))
        return tuple(uses)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    calls: tuple[ToolCall, ...]
    finish: Finish
    counts: Counts
    id: str | None


@dataclass(frozen=True, slots=True)
class Said:
    """Some more of the text."""

    text: str


@dataclass(frozen=True, slots=True)
class Calls:
    """A tool is called: the first call is 0. Its arguments may follow in pieces."""

    index: int
    id: str
    name: str
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class Arguments:
    """Some more of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole."""

    finish: Finish
    counts: Counts


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens so far: what is charged where the answer breaks off, or nobody listens any more."""

    counts: Counts


Piece = Said | Calls | Arguments | Counted | Ended


def result(reply: Reply) -> ProviderResult:
    """Of a job. Raises ProviderError: content_refused (content), answer_cut_off (fatal), provider_answer_empty (retryable)."""
    if reply.finish == "content_filter":
        raise verdicts.refused()
    if not reply.text.strip():
        raise verdicts.cut_off() if reply.finish == "length" else verdicts.empty()
    facts = {"finish_reason": reply.finish}
    return ProviderResult((Output(0, "text", text=reply.text, facts=facts),), reply.counts.usage(), task_id=reply.id)


class Teller:
    """Of one answer: `model` as the caller named it, `created` in seconds."""

    def __init__(self, model: str, created: int, otherwise: str) -> None:
        """`otherwise`: the answer's id where the provider gives none."""
        self._facts = {"created": created, "model": model}
        self._id = otherwise
        self._begun = False

    def name(self, reference: str | None) -> None:
        """The provider's own name of the answer."""
        self._id = reference or self._id

    def whole(self, reply: Reply) -> bytes:
        """A chat.completion."""
        self.name(reply.id)
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": None}
        if reply.calls:
            message["tool_calls"] = [_told_call(call) for call in reply.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        body = {"id": self._id, "object": "chat.completion", **self._facts, "choices": [choice]}
        usage = reply.counts.told()
        return orjson.dumps(body if usage is None else body | {"usage": usage})

    def pieces(self, piece: Piece) -> Iterator[bytes]:
        """Events of chat.completion.chunk; after the last one the counts and [DONE]."""
        if isinstance(piece, Said):
            yield self._chunk({"content": piece.text})
        elif isinstance(piece, Calls):
            call = {
                "index": piece.index,
                "id": piece.id,
                "type": "function",
                "function": {"name": piece.name, "arguments": ""},
            }
            yield self._chunk({"tool_calls": [call | _extra(piece.signature)]})
        elif isinstance(piece, Arguments):
            yield self._chunk({"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]})
        elif isinstance(piece, Counted):
            if (usage := piece.counts.told()) is not None:
                yield SO_FAR + orjson.dumps(usage) + b"\n\n"
        else:
            yield self._chunk({}, piece.finish)
            usage = piece.counts.told()
            if usage is not None:
                yield self._event([], {"usage": usage})
            yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish: Finish | None = None) -> bytes:
        if not self._begun:
            delta = {"role": "assistant", **delta}
            self._begun = True
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], {})

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        body = {"id": self._id, "object": "chat.completion.chunk", **self._facts, "choices": choices, **more}
        return b"data: " + orjson.dumps(body) + b"\n\n"


def number(stated: Mapping[str, Any], name: str) -> Any:
    """A count as stated, however absurd; None for anything else: no stranger's text goes further from here."""
    found = stated.get(name)
    return found if isinstance(found, int | float) else None


def part(value: Any, name: str) -> dict[str, Any]:
    """An object in an object, empty where there is none."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def parts(value: Any, name: str) -> list[dict[str, Any]]:
    """The objects of a list in an object. Raises ProviderError provider_answer_invalid for anything else in it."""
    found = value.get(name) if isinstance(value, dict) else None
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise verdicts.invalid(f"no list of {name}")
    return found


def reference(value: Any) -> str | None:
    """A provider's own name of an answer, where it is one."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_REFERENCE and value.isprintable() else None


def _told_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": orjson.dumps(call.arguments).decode()}
    return {"id": call.id, "type": "function", "function": function} | _extra(call.signature)


def _extra(signature: str | None) -> dict[str, Any]:
    return {} if signature is None else {"extra_content": {"google": {"thought_signature": signature}}}
