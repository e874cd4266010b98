"""A server that speaks Anthropic's Messages API over a real socket: strict about what it is sent, and unreliable when it is told to be.

Errors repeat what they were sent, the key too.
"""

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from tests.emulators.far_server import FarServer, is_typed, serving
from tests.emulators.openai_server import Asked, Says, text_of

FIELDS = {
    "model": str, "max_tokens": int, "messages": list, "system": (str, list), "temperature": (int, float), "top_p": (int, float),
    "top_k": int, "stop_sequences": list, "stream": bool, "tools": list, "tool_choice": dict, "metadata": dict, "output_config": dict,
}  # fmt: skip
BLOCKS: dict[str, dict[str, Any]] = {
    "text": {"type": str, "text": str},
    "image": {"type": str, "source": dict},
    "tool_use": {"type": str, "id": str, "name": str, "input": dict},
    "tool_result": {"type": str, "tool_use_id": str, "content": (str, list), "is_error": bool},
}
SOURCES: dict[str, dict[str, Any]] = {
    "base64": {"type": str, "media_type": str, "data": str},
    "url": {"type": str, "url": str},
}
CHOICES = {"auto", "any", "tool", "none"}
READ, CACHED, WRITTEN = 8, 4, 7
"""Of an answer in one piece; a stream has `tokens` of output. Together 12 tokens are read."""


class AnthropicServer(FarServer):
    models = ("claude-small", "claude-large")
    version = "v1"

    def refusal(self, request: web.Request, asked: Asked) -> Says | None:
        wrong = self._wrong(request, asked)
        return None if wrong is None else error(*wrong)

    def _wrong(self, request: web.Request, asked: Asked) -> tuple[int, str, str] | None:
        given = request.headers.get("x-api-key")
        if self.key is not None and given != self.key:
            return 401, "authentication_error", f"invalid x-api-key: {given}"
        if asked.path != "/v1/messages" or request.headers.get("anthropic-version") != "2023-06-01":
            return 404, "not_found_error", "Not found"
        if (name := is_typed(asked.body, FIELDS)) is not None:
            return 400, "invalid_request_error", f"{name}: Extra inputs are not permitted {dict(request.headers)}"
        if "max_tokens" not in asked.body or not asked.body.get("messages"):
            return 400, "invalid_request_error", "max_tokens, messages: Field required"
        if asked.body["model"] not in self.models:
            return 404, "not_found_error", f"model: {asked.body['model']}"
        if not 0 <= asked.body.get("temperature", 0) <= 1:
            return 400, "invalid_request_error", "temperature: range: 0..1"
        if (words := _unlike(asked.body)) is not None:
            return 400, "invalid_request_error", words
        return None

    def list_models(self, request: web.Request) -> Says:
        if self.key is not None and request.headers.get("x-api-key") != self.key:
            return error(401, "authentication_error", "invalid x-api-key")
        data = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
            for name in self.models
        ]
        return Says(200, {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})

    def streams(self, asked: Asked) -> bool:
        return asked.body.get("stream") is True

    def work(self, asked: Asked) -> dict[str, Any]:
        calls = _calls(asked.body)
        return {
            "id": f"msg_{len(self.asked)}", "type": "message", "role": "assistant", "model": asked.body["model"],
            "content": calls or [{"type": "text", "text": _said(asked.body)}],
            "stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": READ, "cache_creation_input_tokens": 0, "cache_read_input_tokens": CACHED, "output_tokens": WRITTEN},
        }  # fmt: skip

    def events(self, asked: Asked) -> list[bytes]:
        usage = {
            "input_tokens": READ,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED,
            "output_tokens": 1,
        }
        message = {"id": f"msg_{len(self.asked)}", "type": "message", "role": "assistant", "model": asked.body["model"],
                   "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}  # fmt: skip
        calls = _calls(asked.body)
        found = [event("message_start", message=message), event("ping")]
        if calls:
            for index, call in enumerate(calls):
                found += _called(index, call)
        else:
            found.append(event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
            for number in range(self.tokens):
                delta = {"type": "text_delta", "text": f"word{number} "}
                found.append(event("content_block_delta", index=0, delta=delta))
            found.append(event("content_block_stop", index=0))
        ended = {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}
        found.append(event("message_delta", delta=ended, usage={"output_tokens": self.tokens}))
        return [*found, event("message_stop")]


@asynccontextmanager
async def running(key: str | None = None) -> AsyncIterator[AnthropicServer]:
    server = AnthropicServer(key)
    async with serving(server):
        yield server


def error(status: int, kind: str, words: str, headers: Mapping[str, str] | None = None) -> Says:
    """As its errors look."""
    return Says(
        status, {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_1"}, headers or {}
    )


def event(kind: str, **facts: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **facts}) + b"\n\n"


def _unlike(body: Mapping[str, Any]) -> str | None:
    """What is wrong with the messages, the tools and the choice among them."""
    roles = [message.get("role") for message in body["messages"]]
    if roles[0] != "user" or not set(roles) <= {"user", "assistant"}:
        return "messages: roles must be user or assistant, user first"
    for message in body["messages"]:
        for block in message["content"]:
            if is_typed(block, BLOCKS.get(block.get("type"), {})) is not None or block.get("text") == "":
                return f"messages.content: {block.get('type')} is wrong"
            if block["type"] == "image" and (wrong := _bad_source(block["source"])) is not None:
                return wrong
    for tool in body.get("tools", ()):
        if (
            is_typed(tool, {"name": str, "description": str, "input_schema": dict})
            or tool["input_schema"].get("type") != "object"
        ):
            return "tools: Input tag"
    if body.get("tool_choice", {"type": "auto"}).get("type") not in CHOICES:
        return "tool_choice: Input tag"
    return None


def _bad_source(source: Mapping[str, Any]) -> str | None:
    if is_typed(source, SOURCES.get(str(source.get("type")), {})) is not None:
        return "source: Input tag"
    if source["type"] == "base64":
        try:
            base64.b64decode(source["data"], validate=True)
        except ValueError:
            return "source: Invalid base64 data"
    return None


def _said(body: Mapping[str, Any]) -> str:
    """Words about the last message's first text; where a schema asks for an object, one with them in each of its texts."""
    told = [block.get("text") or block.get("content") for block in body["messages"][-1]["content"]]
    words = text_of(next(text for text in told if isinstance(text, str)))
    form = body.get("output_config", {}).get("format")
    if form is None:
        return words
    fields = form["schema"]["properties"]
    return orjson.dumps({name: words if field["type"] == "string" else 7 for name, field in fields.items()}).decode()


def _calls(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whoever offers tools is asked for the first one; an answer of a tool's ends that."""
    last = body["messages"][-1]["content"][0]
    if not body.get("tools") or last["type"] == "tool_result" or body.get("tool_choice", {}).get("type") == "none":
        return []
    tool = body["tools"][0]
    arguments = dict.fromkeys(tool["input_schema"].get("properties", {}), last["text"])
    return [{"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": arguments}]


def _called(index: int, call: Mapping[str, Any]) -> list[bytes]:
    text = orjson.dumps(call["input"]).decode() if call["input"] else ""
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", text[:5], text[5:])]
    return [
        event("content_block_start", index=index, content_block={**call, "input": {}}),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]
