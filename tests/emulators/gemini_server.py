"""A server that speaks Google's Gemini API (v1beta) over a real socket: strict about what it is sent, and unreliable when it is told to be.

Errors repeat what they were sent, the key too. A call of a function carries a signature, and a later request without it is refused, as the
newer models do.
"""

import base64
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from tests.emulators.far_server import FarServer, is_typed, serving
from tests.emulators.openai_server import Asked, Says, text_of, vector_of
from tests.hub.doubles import png

PATH = re.compile(r"/v1beta/models/([a-z0-9.-]+):(generateContent|streamGenerateContent|batchEmbedContents)")
FIELDS = {
    "contents": list,
    "systemInstruction": dict,
    "generationConfig": dict,
    "tools": list,
    "toolConfig": dict,
    "safetySettings": list,
}
CONFIG = {
    "temperature": (int, float), "topP": (int, float), "topK": int, "maxOutputTokens": int, "stopSequences": list, "seed": int,
    "presencePenalty": (int, float), "frequencyPenalty": (int, float), "candidateCount": int, "responseMimeType": str,
    "responseJsonSchema": dict, "responseModalities": list, "imageConfig": dict,
}  # fmt: skip
PARTS = {"text": str, "inlineData": dict, "functionCall": dict, "functionResponse": dict, "thoughtSignature": str}
DECLARED = {"name": str, "description": str, "parametersJsonSchema": dict}
EMBED = {"model": str, "content": dict, "outputDimensionality": int, "taskType": str}
SIGNATURE = "c2lnbmVk"
READ, CACHED, WRITTEN, THOUGHT = 12, 4, 5, 2
"""Of an answer in one piece; a stream has `tokens` of output, two of them thoughts."""


class GeminiServer(FarServer):
    models = ("gemini-small", "gemini-image", "gemini-embedding")
    version = "v1beta"

    def refusal(self, request: web.Request, asked: Asked) -> Says | None:
        wrong = self._wrong(request, asked)
        return None if wrong is None else error(*wrong)

    def _wrong(self, request: web.Request, asked: Asked) -> tuple[int, str, str] | None:
        given = request.headers.get("x-goog-api-key")
        if self.key is not None and given != self.key:
            return 400, "INVALID_ARGUMENT", f"API key not valid. Please pass a valid API key. {given}"
        found = PATH.fullmatch(asked.path)
        if found is None or found[1] not in self.models:
            return 404, "NOT_FOUND", f"{asked.path} is not found for API version v1beta"
        if (found[2] == "streamGenerateContent") != (request.query_string == "alt=sse"):
            return 400, "INVALID_ARGUMENT", "alt=sse is for streams"
        embeds = found[2] == "batchEmbedContents"
        wrong = _bad_embedding(asked.body, found[1]) if embeds else _bad_contents(asked.body)
        return None if wrong is None else (400, "INVALID_ARGUMENT", f"{wrong} {dict(request.headers)}")

    def list_models(self, request: web.Request) -> Says:
        if self.key is not None and request.headers.get("x-goog-api-key") != self.key:
            return error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        return Says(200, {"models": [{"name": f"models/{name}", "displayName": name} for name in self.models]})

    def streams(self, asked: Asked) -> bool:
        return asked.path.endswith(":streamGenerateContent")

    def work(self, asked: Asked) -> dict[str, Any]:
        if asked.path.endswith(":batchEmbedContents"):
            texts = [one["content"]["parts"][0]["text"] for one in asked.body["requests"]]
            return {
                "embeddings": [{"values": vector_of(text)} for text in texts],
                "usageMetadata": {"promptTokenCount": 3},
            }
        if "IMAGE" in asked.body.get("generationConfig", {}).get("responseModalities", ()):
            drawn = {"mimeType": "image/png", "data": base64.b64encode(png(8)).decode()}
            return self._answer([{"text": "Here it is."}, {"inlineData": drawn}], WRITTEN)
        return self._answer(
            _calls(asked.body) or [{"text": "Hm.", "thought": True}, {"text": _said(asked.body)}], WRITTEN
        )

    def events(self, asked: Asked) -> list[bytes]:
        calls = _calls(asked.body)
        said = [[call] for call in calls] or [[{"text": f"word{number} "}] for number in range(self.tokens)]
        found = [self._answer(parts, number + 1) for number, parts in enumerate(said)]
        for event in found[:-1]:
            del event["candidates"][0]["finishReason"]
        found[-1]["usageMetadata"]["candidatesTokenCount"] = self.tokens - THOUGHT
        return [b"data: " + orjson.dumps(event) + b"\r\n\r\n" for event in found]

    def _answer(self, parts: list[dict[str, Any]], written: int) -> dict[str, Any]:
        counts = {
            "promptTokenCount": READ, "cachedContentTokenCount": CACHED, "candidatesTokenCount": written, "thoughtsTokenCount": THOUGHT,
            "totalTokenCount": READ + written + THOUGHT,
        }  # fmt: skip
        candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
        return {
            "candidates": [candidate],
            "usageMetadata": counts,
            "modelVersion": "1",
            "responseId": f"resp{len(self.asked)}",
        }


@asynccontextmanager
async def running(key: str | None = None) -> AsyncIterator[GeminiServer]:
    server = GeminiServer(key)
    async with serving(server):
        yield server


def error(status: int, code: str, words: str, *details: Mapping[str, Any]) -> Says:
    """As its errors look."""
    return Says(status, {"error": {"code": status, "message": words, "status": code, "details": list(details)}})


def _bad_embedding(body: Mapping[str, Any], model: str) -> str | None:
    asked = body.get("requests")
    if not isinstance(asked, list) or not 0 < len(asked) <= 100:
        return "requests: 1 to 100"
    if any(is_typed(one, EMBED) or one["model"] != f"models/{model}" for one in asked):
        return "requests: unknown field, or another model"
    return None


def _bad_contents(body: Mapping[str, Any]) -> str | None:
    if (name := is_typed(body, FIELDS) or is_typed(body.get("generationConfig", {}), CONFIG)) is not None:
        return f'Invalid JSON payload received. Unknown name "{name}"'
    if [content.get("role") for content in body.get("contents", ())][:1] != ["user"]:
        return "contents: the user is first"
    for content in body["contents"]:
        for part in content["parts"]:
            if (wrong := _bad_part(part)) is not None:
                return wrong
    for tool in body.get("tools", ()):
        if set(tool) != {"functionDeclarations"} or any(
            is_typed(one, DECLARED) for one in tool["functionDeclarations"]
        ):
            return "tools: unknown name"
    mode = body.get("toolConfig", {}).get("functionCallingConfig", {}).get("mode", "AUTO")
    return None if mode in {"AUTO", "ANY", "NONE"} else "mode"


def _bad_part(part: Mapping[str, Any]) -> str | None:
    if not part or is_typed(part, PARTS) is not None or part.get("text") == "":
        return "contents.parts: unknown name"
    if "functionCall" in part and part.get("thoughtSignature") != SIGNATURE:
        return "Function call is missing a thought_signature in functionCall parts."
    try:
        base64.b64decode(part.get("inlineData", {}).get("data", ""), validate=True)
    except ValueError:
        return "inlineData: Base64 decoding failed"
    return None


def _said(body: Mapping[str, Any]) -> str:
    """Words about the last content's first text, or about what a function gave; where a schema asks for an object, one with them in it."""
    parts = body["contents"][-1]["parts"]
    told = [part.get("text") or part.get("functionResponse", {}).get("response", {}).get("result") for part in parts]
    words = text_of(next(text for text in told if text))
    schema = body.get("generationConfig", {}).get("responseJsonSchema")
    if schema is None:
        return words
    return orjson.dumps(
        {name: words if field["type"] == "string" else 7 for name, field in schema["properties"].items()}
    ).decode()


def _calls(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whoever declares functions is asked for the first one; an answer of a function's ends that."""
    last = body["contents"][-1]["parts"][0]
    mode = body.get("toolConfig", {}).get("functionCallingConfig", {}).get("mode")
    if not body.get("tools") or "functionResponse" in last or mode == "NONE":
        return []
    function = body["tools"][0]["functionDeclarations"][0]
    arguments = dict.fromkeys(function.get("parametersJsonSchema", {}).get("properties", {}), last["text"])
    return [{"functionCall": {"name": function["name"], "args": arguments}, "thoughtSignature": SIGNATURE}]
