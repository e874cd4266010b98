"""Chats by generateContent and streamGenerateContent: texts, pictures described, functions, structured answers, streams."""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import orjson

from limner.egress.credentials import KeyForm
from limner.hub.providers import verdicts
from limner.hub.providers.base import ProviderError
from limner.hub.providers.conversation import Conversation, Part, Picture, Text, Tool, ToolCall, ToolResult
from limner.hub.providers.gemini import errors
from limner.hub.providers.replies import (
    Arguments,
    Calls,
    Counted,
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

AUTH = KeyForm("x-goog-api-key")
OPTIONS = {
    "temperature": "temperature", "top_p": "topP", "stop": "stopSequences", "seed": "seed", "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}  # fmt: skip
CONFIG = ("timeout_s",)
PICTURES = frozenset({"image/jpeg", "image/png", "image/webp", "image/heic", "image/heif"})
MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
FILTERED = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
     "IMAGE_RECITATION"}
)  # fmt: skip
LENGTH = "MAX_TOKENS"


class Speech:
    """models/{model}:generateContent (translating.Speech)."""

    auth = AUTH
    options = frozenset(OPTIONS)
    config_keys = CONFIG

    def path(self, model: str, *, stream: bool) -> str:
        return (
            f"{model_path(model)}:streamGenerateContent?alt=sse" if stream else f"{model_path(model)}:generateContent"
        )

    def headers(self) -> dict[str, str]:
        return {}

    def body(self, asked: Conversation, model: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:  # noqa: ARG002  (they stand in the path)
        config: dict[str, Any] = {"maxOutputTokens": max_tokens}
        config |= {OPTIONS[name]: value for name, value in asked.options.items()}
        if asked.as_json:
            config["responseMimeType"] = "application/json"
        if asked.schema is not None:
            config["responseJsonSchema"] = asked.schema
        said: dict[str, Any] = {
            "contents": [
                {"role": "model" if turn.role == "assistant" else "user", "parts": [_part(part) for part in turn.parts]}
                for turn in asked.turns
            ],
            "generationConfig": config,
        }
        if asked.system:
            said["systemInstruction"] = {"parts": [{"text": text} for text in asked.system]}
        if asked.tools:
            said["tools"] = [{"functionDeclarations": [_declared(tool) for tool in asked.tools]}]
            said |= _choice(asked)
        return said

    def reply(self, value: Mapping[str, Any]) -> Reply:
        ear = Ear(limit=None)
        texts: list[str] = []
        calls: list[ToolCall] = []
        last = Ended("stop", Counts())
        for piece in (*ear.hear(value), *ear.end()):
            if isinstance(piece, Said):
                texts.append(piece.text)
            elif isinstance(piece, Calls):
                calls.append(ToolCall(piece.id, piece.name, {}, piece.signature))
            elif isinstance(piece, Arguments):
                call = calls[piece.index]
                calls[piece.index] = ToolCall(call.id, call.name, orjson.loads(piece.text), call.signature)
            elif isinstance(piece, Ended):
                last = piece
        return Reply("".join(texts), tuple(calls), last.finish, last.counts, ear.id)

    def ear(self) -> "Ear":
        return Ear()

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return errors.refusal(status, headers, body)


class Ear:
    """One answer (translating.Ear): each event is a piece of the first candidate; the one with a reason to finish is the last."""

    def __init__(self, limit: str | None = "finishReason") -> None:
        """`limit`: what an event has that ends the answer; None where `end` is called."""
        self.id: str | None = None
        self._limit = limit
        self._stated: dict[str, Any] = {}
        self._reason: str | None = None
        self._count = 0
        self._spoke = False

    def hear(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        if event.get("error"):
            raise errors.failure(event, 500)
        self.id = self.id or reference(event.get("responseId"))
        if stated := part(event, "usageMetadata"):
            self._stated |= stated
            yield Counted(counts(self._stated))
        candidates = parts(event, "candidates")
        if not candidates and not self._spoke and part(event, "promptFeedback").get("blockReason"):
            raise verdicts.failure("content_refused", 200)
        if not candidates and self._limit is None:
            raise verdicts.invalid("no candidates")
        for candidate in candidates[:1]:
            for said in parts(part(candidate, "content"), "parts"):
                yield from self._say(said)
            reason = candidate.get("finishReason")
            self._reason = reason if isinstance(reason, str) else self._reason
            if self._limit is not None and self._reason is not None:
                yield from self.end()

    def end(self) -> Iterator[Piece]:
        """The end of the answer. Raises ProviderError provider_answer_empty for one that had no words and no good reason."""
        finish: Finish = "stop"
        if self._reason in FILTERED:
            finish = "content_filter"
        elif self._reason == LENGTH:
            finish = "length"
        elif self._count:
            finish = "tool_calls"
        elif not self._spoke and self._reason != "STOP":
            raise verdicts.empty()
        yield Ended(finish, counts(self._stated))

    def _say(self, said: Mapping[str, Any]) -> Iterator[Piece]:
        if said.get("thought") is True:
            return
        text, call = said.get("text"), said.get("functionCall")
        if isinstance(text, str) and text:
            self._spoke = True
            yield Said(text)
        if isinstance(call, dict):
            name, given, signature = call.get("name"), call.get("args"), said.get("thoughtSignature")
            if not isinstance(name, str):
                raise verdicts.invalid("a function without a name")
            index, self._count, self._spoke = self._count, self._count + 1, True
            named = reference(call.get("id")) or f"call_{secrets.token_hex(12)}"
            yield Calls(index, named, name, signature if isinstance(signature, str) else None)
            yield Arguments(index, orjson.dumps(given if isinstance(given, dict) else {}).decode())


def model_path(model: str) -> str:
    """/models/{model}; a name that has a folder keeps it (tunedModels/x)."""
    named = quote(model, safe="/-._~")
    return f"/{named}" if "/" in named else f"/models/{named}"


def counts(stated: Mapping[str, Any]) -> Counts:
    """What was thought was written, too: both are billed. Cached tokens are among those of the prompt."""
    written, thought = number(stated, "candidatesTokenCount"), number(stated, "thoughtsTokenCount")
    read = number(stated, "promptTokenCount")
    if read is not None and written is None:
        written = 0  # left out where it is zero, as in all of this interface
    total = None if written is None else written + (thought or 0)
    return Counts(read, number(stated, "cachedContentTokenCount"), total)


def inline(picture: Picture) -> dict[str, Any]:
    """A picture as a part. Raises ProviderError unsupported_input for an address, and a type that is not taken."""
    if picture.url:
        raise verdicts.unsupported("pictures by address; as data URIs it takes them")
    if picture.media_type not in PICTURES:
        raise verdicts.unsupported("pictures that are no JPEG, PNG, WebP or HEIC")
    return {"inlineData": {"mimeType": picture.media_type, "data": picture.data}}


def _part(said: Part) -> dict[str, Any]:
    if isinstance(said, Text):
        return {"text": said.text}
    if isinstance(said, ToolCall):
        call: dict[str, Any] = {"functionCall": {"id": said.id, "name": said.name, "args": said.arguments}}
        return call | ({} if said.signature is None else {"thoughtSignature": said.signature})
    if isinstance(said, ToolResult):
        return {"functionResponse": {"id": said.id, "name": said.name, "response": _object(said.text)}}
    return inline(said)


def _object(text: str) -> dict[str, Any]:
    """A tool's answer must be an object here; what is none becomes one."""
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"result": text}


def _declared(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    schema = {} if tool.parameters is None else {"parametersJsonSchema": tool.parameters}
    return {"name": tool.name, **described, **schema}


def _choice(asked: Conversation) -> dict[str, Any]:
    if asked.parallel is False:
        raise verdicts.unsupported("parallel_tool_calls false")
    if asked.choice is None:
        return {}
    config: dict[str, Any] = {"mode": MODES[asked.choice]}
    if asked.forced is not None:
        config["allowedFunctionNames"] = [asked.forced]
    return {"toolConfig": {"functionCallingConfig": config}}
