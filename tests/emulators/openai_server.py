"""A server that speaks OpenAI's interface over a real socket: strict about what it is sent, and unreliable when it is told to be.

It keeps count of what it was asked and of what it did (and would bill), by the X-Client-Request-Id that came with it, which
limner makes the job's id. Its errors repeat everything they were sent, the key too, as some servers' do.
"""

import asyncio
import base64
import os
import signal
import struct
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import orjson
from aiohttp import BodyPartReader, web

from tests.emulators.provider import KILL
from tests.hub.doubles import png

STALL_S = 60.0
MODELS = ("tiny", "painter", "vectors", "listener")
CHAT = {
    "model": str, "messages": list, "n": int, "temperature": (int, float), "top_p": (int, float), "max_tokens": int,
    "max_completion_tokens": int, "stop": (str, list), "seed": int, "presence_penalty": (int, float),
    "frequency_penalty": (int, float), "reasoning_effort": str, "stream": bool, "stream_options": dict, "tools": list,
    "tool_choice": (str, dict), "response_format": dict, "user": str, "metadata": dict, "store": bool, "logprobs": bool,
    "parallel_tool_calls": bool,
}  # fmt: skip
PICTURES = {
    "model": str, "prompt": str, "n": int, "size": str, "quality": str, "style": str, "background": str,
    "response_format": str,
}  # fmt: skip
COMPLETIONS = {
    "model": str,
    "prompt": str,
    "max_tokens": int,
    "stop": (str, list),
    "stream": bool,
    "stream_options": dict,
}
MODERATIONS = {"model": str, "input": (str, list)}
EMBEDDINGS = {"model": str, "input": (str, list), "encoding_format": str, "dimensions": int}


@dataclass(frozen=True)
class Says:
    """Answers this instead of doing anything."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


Misfortune = Literal["stalls", "stalls after its headers", "hangs up", "hangs up afterwards", "breaks off", "is slow"]
"""It takes the request and says nothing, or nothing more than its headers; closes the line before it has done anything, or when
all is done and nothing said, or in the middle of its answer; takes a second over it."""
Turn = Says | Misfortune | None


@dataclass(frozen=True)
class Asked:
    """One request: `body` is its JSON, or its form with files as bytes."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class OpenAIServer:
    """`keys`: what came, in order, and `drawn`: pictures or texts that cost money; both by job. `key`: the one it accepts."""

    root = "/v1"

    def __init__(self, key: str | None = None, models: tuple[str, ...] = MODELS) -> None:
        self.origin = ""
        self.key = key
        self.models = models
        self.asked: list[Asked] = []
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.drawn: dict[str, int] = defaultdict(int)
        self.written: dict[str, int] = defaultdict(int)
        """By job: the tokens of streams that were written, and would be billed."""
        self.tokens = 20
        self.token_s = 0.0
        """Of a stream: how many pieces it has, and the pause before each."""
        self.changes: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.fields = FIELDS
        self._turns: deque[Turn] = deque()
        self._always: Turn = None

    @property
    def url(self) -> str:
        """What a provider's base_url is."""
        return f"{self.origin}{self.root}"

    @property
    def environment(self) -> dict[str, Any]:
        """What a process needs to reach it, with its key."""
        keys = orjson.dumps({self.origin: self.key}).decode()
        return {"LIMNER_EGRESS_PLAIN_ORIGINS": self.origin, "LIMNER_PROVIDER_KEYS": keys}

    def then(self, *turns: Turn) -> None:
        """How the next requests fare, one each; after them all is well."""
        self._turns.extend(turns)

    def calm_down(self) -> None:
        """All is well from now on."""
        self._turns.clear()
        self._always = None

    def always(self, turn: Turn) -> None:
        """How every request fares that has no turn of its own."""
        self._always = turn

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Any request but for the list of models."""
        asked = Asked(request.path, request.headers, await _read(request))
        job = request.headers.get("X-Client-Request-Id", "")
        self.asked.append(asked)
        self.keys[job].append(job)
        turn = self._turns.popleft() if self._turns else self._always
        if isinstance(turn, Says):
            return say(turn)
        if turn == "hangs up":
            return hang_up(request)
        if turn in {"stalls", "is slow"}:
            await asyncio.sleep(STALL_S if turn == "stalls" else 1)
        wrong = self._refusal(request, asked)
        if wrong is not None:
            return say(wrong)
        if asked.body.get("stream"):
            return await self._stream(request, asked, turn)
        answer = self.changes(self._work(asked))
        self.drawn[job] += 1
        if KILL in request.headers:
            os.kill(int(request.headers[KILL]), signal.SIGKILL)
        if turn == "hangs up afterwards":
            return hang_up(request)
        body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        headers = {"x-request-id": f"req_{len(self.asked)}"}
        if turn in {"breaks off", "stalls after its headers"}:
            return await half(request, body, headers, 0 if turn == "breaks off" else STALL_S)
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def list_models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        if (wrong := self._unauthorized(request)) is not None:
            return say(wrong)
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    def _unauthorized(self, request: web.Request) -> Says | None:
        given = request.headers.get("Authorization")
        if self.key is None or given == f"Bearer {self.key}":
            return None
        return _error(401, f"Incorrect API key provided: {given}.", code="invalid_api_key")

    def _refusal(self, request: web.Request, asked: Asked) -> Says | None:
        if (wrong := self._unauthorized(request)) is not None:
            return wrong
        known = self.fields.get(asked.path.removeprefix(self.root))
        if known is None:
            return Says(404, {"detail": "Not Found"})
        for name, value in asked.body.items():
            if name not in known:
                return _error(400, f"Unrecognized request argument: {name}", code="unknown_parameter", param=name)
            if not isinstance(value, known[name]):
                return _error(400, f"Invalid type for {name}: {dict(request.headers)}", param=name)
        model = asked.body.get("model")
        if model not in self.models:
            return _error(404, f"The model `{model}` does not exist. {dict(request.headers)}", code="model_not_found")
        return None

    async def _stream(self, request: web.Request, asked: Asked, turn: Turn) -> web.StreamResponse:
        """One event a token; the count at the end where it was asked for. Who hangs up ends it, and what was written is billed."""
        job = request.headers.get("X-Client-Request-Id", "")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        frame = {
            "id": f"chatcmpl-{len(self.asked)}",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": asked.body["model"],
        }
        counts = (asked.body.get("stream_options") or {}).get("include_usage") is True
        calls = _tool_calls(asked.body)
        for number in range(0 if calls else self.tokens):
            if self.token_s:
                await asyncio.sleep(self.token_s)
            if turn == "breaks off" and number == self.tokens // 2:
                return hang_up(request)
            delta: dict[str, Any] = {"content": f"word{number} "} | ({} if number else {"role": "assistant"})
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            await response.write(_event({**frame, "choices": [choice], **({"usage": None} if counts else {})}))
            self.written[job] += 1
        for number, call in enumerate(calls):
            delta = {"role": "assistant", "tool_calls": [{"index": number, **call}]}
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            await response.write(_event({**frame, "choices": [choice], **({"usage": None} if counts else {})}))
            self.written[job] += 1
        last = {"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}
        await response.write(_event({**frame, "choices": [last], **({"usage": None} if counts else {})}))
        self.drawn[job] += 1
        if counts:
            await response.write(_event({**frame, "choices": [], "usage": self._counted(self.written[job])}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _counted(self, tokens: int) -> dict[str, Any]:
        """What a stream ends with."""
        return {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens}

    def _work(self, asked: Asked) -> dict[str, Any]:
        made = ANSWERS.get(asked.path.removeprefix(self.root))
        if made is not None:
            return made(asked.body)
        pictures = [png(8, grey=20 + n) for n in range(int(asked.body.get("n", 1)))]
        return {"created": 1, "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]}


Served = TypeVar("Served", bound=OpenAIServer)
FIELDS: dict[str, dict[str, Any]] = {
    "/chat/completions": CHAT,
    "/completions": COMPLETIONS,
    "/embeddings": EMBEDDINGS,
    "/moderations": MODERATIONS,
    "/images/generations": PICTURES,
    "/images/edits": {**PICTURES, "n": str, "image": bytes, "image[]": list, "mask": bytes},
    "/images/variations": {"model": str, "image": bytes, "n": str, "size": str, "response_format": str},
    "/audio/transcriptions": {
        "model": str,
        "file": bytes,
        "response_format": str,
        "language": str,
        "prompt": str,
        "temperature": str,
    },
}


@asynccontextmanager
async def running(key: str | None = None, *models: str) -> AsyncIterator[OpenAIServer]:
    """A server on a port of its own, with these models besides its own."""
    async with serving(OpenAIServer(key, (*MODELS, *models))) as server:
        yield server


@asynccontextmanager
async def serving(server: Served) -> AsyncIterator[Served]:
    """This server on a port of its own."""
    routes = [web.get(f"{server.root}/models", server.list_models), web.post("/{path:.*}", server.serve)]
    async with listening(routes) as server.origin:
        yield server


@asynccontextmanager
async def listening(routes: Iterable[web.RouteDef]) -> AsyncIterator[str]:
    """The origin where they are served, on a port of its own."""
    application = web.Application(client_max_size=64 * 2**20)
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def heard_in(recording: bytes) -> str:
    """What the model of recordings answers."""
    return f"A recording of {len(recording)} bytes."


def text_of(prompt: str) -> str:
    """What the model of texts answers."""
    return f"Some words about {prompt}."


def vector_of(text: str) -> list[float]:
    """What the model of vectors makes of it."""
    return [(len(text) * (place + 3) % 17 - 8) / 8 for place in range(8)]


async def _read(request: web.Request) -> dict[str, Any]:
    if request.content_type != "multipart/form-data":
        parsed: dict[str, Any] = orjson.loads(await request.read())
        return parsed
    form: dict[str, Any] = {}
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        assert part.name is not None
        data = bytes(await part.read())
        value: Any = data if part.filename else data.decode()
        if part.name.endswith("[]"):
            form.setdefault(part.name, []).append(value)
        else:
            form[part.name] = value
    return form


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _completion(body: Mapping[str, Any]) -> dict[str, Any]:
    calls = _tool_calls(body)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else _said(body), "refusal": None}
    if calls:
        message["tool_calls"] = calls
    choice = {"message": message, "logprobs": None, "finish_reason": "tool_calls" if calls else "stop"}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": n, **choice} for n in range(body.get("n", 1))],
        "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19, "prompt_tokens_details": {"cached_tokens": 4}},
    }  # fmt: skip


def _said(body: Mapping[str, Any]) -> str:
    """Words about the last message's text; where a schema asks for an object, one with them in each of its texts."""
    content = body["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else content[0]["text"]
    form = body.get("response_format", {})
    if form.get("type") != "json_schema":
        return text_of(prompt)
    fields = form["json_schema"]["schema"]["properties"]
    return orjson.dumps(
        {name: text_of(prompt) if field["type"] == "string" else 7 for name, field in fields.items()}
    ).decode()


def _tool_calls(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whoever offers tools is asked for the first one, with the text in each of its arguments; an answer of a tool's ends that."""
    if not body.get("tools") or body["messages"][-1]["role"] == "tool":
        return []
    function = body["tools"][0]["function"]
    arguments = dict.fromkeys(function["parameters"]["properties"], body["messages"][-1]["content"])
    return [
        {"id": "call_1", "type": "function", "function": {"name": function["name"], "arguments": orjson.dumps(arguments).decode()}}
    ]  # fmt: skip


def _ghost_text(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "text": text_of(body["prompt"]), "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
    }  # fmt: skip


def _transcript(body: Mapping[str, Any]) -> dict[str, Any]:
    """As whisper-1 does: in JSON a text and the seconds that are billed, in the longer form language, duration and parts, too."""
    text = heard_in(body["file"])
    usage = {"type": "duration", "seconds": 3}
    if body.get("response_format") != "verbose_json":
        return {"text": text, "usage": usage}
    part = {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": 2.9,
        "text": text,
        "tokens": [1],
        "temperature": 0.0,
        "avg_logprob": -0.2,
    }
    spoken = body.get("language", "english")
    return {"task": "transcribe", "language": spoken, "duration": 2.9, "text": text, "segments": [part], "usage": usage}


def _embedding(body: Mapping[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors: list[Any] = [vector_of(text) for text in texts]
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
    return {
        "object": "list", "model": body["model"], "usage": {"prompt_tokens": 3, "total_tokens": 3},
        "data": [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)],
    }  # fmt: skip


def _judgement(body: Mapping[str, Any]) -> dict[str, Any]:
    """One result for each text, or one for the parts of one input together; a text with `axe` in it is violent."""
    given: list[Any] = [body["input"]] if isinstance(body["input"], str) else body["input"]
    texts = given if isinstance(given[0], str) else [" ".join(part.get("text", "") for part in given)]
    found = [float("axe" in text) for text in texts]
    results = [
        {"flagged": score > 0.5, "categories": {"violence": score > 0.5}, "category_scores": {"violence": score},
         "category_applied_input_types": {"violence": ["text"]}}
        for score in found
    ]  # fmt: skip
    return {"id": "modr-1", "model": body["model"], "results": results}


ANSWERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "/chat/completions": _completion, "/completions": _ghost_text, "/embeddings": _embedding, "/moderations": _judgement,
    "/audio/transcriptions": _transcript,
}  # fmt: skip


def _error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Says:
    return Says(status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})


def say(says: Says) -> web.Response:
    """The answer."""
    body = says.body if isinstance(says.body, bytes) else orjson.dumps(says.body)
    return web.Response(status=says.status, body=body, headers={"Content-Type": "application/json", **says.headers})


def hang_up(request: web.Request) -> web.Response:
    """Closes the line."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request, body: bytes, headers: Mapping[str, str], pause_s: float) -> web.StreamResponse:
    """All of the headers, half of the body, and after a pause the end of the line."""
    response = web.StreamResponse(
        headers={**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}
    )
    await response.prepare(request)
    await response.write(body[: len(body) // 2] if not pause_s else b"")
    await asyncio.sleep(pause_s)
    assert request.transport is not None
    request.transport.close()
    return response
