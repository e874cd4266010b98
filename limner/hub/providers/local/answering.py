"""The local provider's answers at once: sentences out of a text that was given, and vectors of texts. No language model."""

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import orjson

from limner.db.context import DatabaseClock
from limner.hub.catalog import Model, Route
from limner.hub.chat import Asked
from limner.hub.providers.base import Leave, ProviderError
from limner.hub.providers.local.reading import pieces
from limner.hub.providers.local.reading.shapes import DIMENSIONS, EMBED, READ, Reading, TextRejected
from limner.kit.cpu import CpuError, CpuPool, CpuTimeout

MAX_TEXTS = 256
"""Vectors of one call."""
UNSUPPORTED = {
    "tools": "This model calls no tools.",
    "response_format": "This model answers in plain text.",
    "logprobs": "This model has no probabilities.",
}


class Reader:
    """`local/extract` and `local/embed`, in child processes: deterministic, free of any network."""

    def __init__(self, pool: CpuPool, clock: DatabaseClock) -> None:
        self._pool = pool
        self._clock = clock

    async def whole(
        self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None  # noqa: ARG002  (chat.Answering's)
    ) -> bytes:  # fmt: skip
        """An answer in the interface's shape.

        Raises ProviderError: unsupported_kind (fatal); unsupported_input and the codes of TextRejected (bad_request);
        provider_timeout and provider_failed (retryable).
        """
        if leave is not None:
            await leave
        if asked.surface.made == "data":
            return orjson.dumps(await self._embed(asked))
        reading = await self._read(asked)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if asked.surface.content == "prompt":
            choice["text"] = reading.text
        else:
            choice["message"] = {"role": "assistant", "content": reading.text, "refusal": None}
        return orjson.dumps({**self._head(asked, job_id, ""), "choices": [choice], "usage": _usage(asked, reading)})

    @asynccontextmanager
    async def stream(
        self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None  # noqa: ARG002  (chat.Answering's)
    ) -> AsyncIterator[AsyncIterator[bytes]]:  # fmt: skip
        """The same word by word."""
        if leave is not None:
            await leave
        reading = await self._read(asked)

        async def events() -> AsyncIterator[bytes]:
            head = self._head(asked, job_id, ".chunk")
            texts = asked.surface.content == "prompt"
            for number, piece in enumerate(pieces.pieces(reading.text)):
                delta = {"content": piece} if number else {"role": "assistant", "content": piece}
                said: dict[str, Any] = {"text": piece} if texts else {"delta": delta}
                yield _event({**head, "choices": [{"index": 0, "finish_reason": None, **said}]})
            last: dict[str, Any] = {"text": ""} if texts else {"delta": {}}
            yield _event({**head, "choices": [{"index": 0, "finish_reason": "stop", **last}]})
            yield _event({**head, "choices": [], "usage": _usage(asked, reading)}) + b"data: [DONE]\n\n"

        yield events()

    def _head(self, asked: Asked, job_id: UUID, suffix: str) -> dict[str, Any]:
        kind = "text_completion" if asked.surface.content == "prompt" else f"chat.completion{suffix}"
        return {"id": f"limner-{job_id}", "object": kind, "created": int(self._clock.now()), "model": asked.model}

    async def _read(self, asked: Asked) -> Reading:
        for name, words in UNSUPPORTED.items():
            if asked.value.get(name) not in (None, [], False, {"type": "text"}):
                raise ProviderError("unsupported_input", words, "bad_request")
        if asked.choices > 1:
            raise ProviderError("unsupported_input", "This model gives one answer.", "bad_request")
        messages = asked.value.get("messages") or [{"role": "user", "content": asked.value["prompt"]}]
        found: Reading = await self._run(READ, messages)
        return found

    async def _embed(self, asked: Asked) -> dict[str, Any]:
        given = asked.value["input"]
        texts = [given] if isinstance(given, str) else given
        if not all(isinstance(text, str) for text in texts) or len(texts) > MAX_TEXTS:
            raise ProviderError("unsupported_input", f"This model takes texts, at most {MAX_TEXTS}.", "bad_request")
        encoding = asked.value.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise ProviderError("unsupported_input", "encoding_format must be float or base64.", "bad_request")
        vectors = await self._run(EMBED, texts, asked.value.get("dimensions") or DIMENSIONS)
        read = sum(pieces.tokens(text) for text in texts)
        return {
            "object": "list", "model": asked.model, "usage": {"prompt_tokens": read, "total_tokens": read},
            "data": [{"object": "embedding", "index": n, "embedding": _encoded(vector, encoding)} for n, vector in enumerate(vectors)],
        }  # fmt: skip

    async def _run(self, work: str, *arguments: object) -> Any:
        try:
            return await self._pool.run(work, *arguments)
        except TextRejected as error:
            raise ProviderError(error.code, error.message, "bad_request") from None
        except CpuTimeout as error:
            raise ProviderError("provider_timeout", "The local provider ran out of time.", "retryable") from error
        except CpuError as error:
            raise ProviderError("provider_failed", "The local provider failed.", "retryable") from error


def _usage(asked: Asked, reading: Reading) -> dict[str, int]:
    texts = asked.value.get("messages") or [{"content": asked.value.get("prompt")}]
    read = sum(pieces.tokens(text) for message in texts for text in _texts(message.get("content")))
    written = pieces.tokens(reading.text)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    """As numbers, or as little-endian floats of 32 bits in base64, which is what OpenAI's own clients ask for."""
    return vector if encoding == "float" else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
