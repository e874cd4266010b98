"""Chats with servers that speak another interface: OpenAI's request in their words, their answer in OpenAI's, whole or as it comes."""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import UUID

import orjson

from limner.egress.credentials import KeyForm
from limner.egress.own_keys import SealedKey
from limner.hub import chat, routing
from limner.hub.catalog import Model, Route
from limner.hub.chat import Asked
from limner.hub.providers import asking, conversation, replies, rows, verdicts
from limner.hub.providers.base import ConfigInvalid, Leave, ProviderCall, ProviderError, ProviderResult
from limner.hub.providers.conversation import Conversation
from limner.hub.providers.kinds import Tools
from limner.hub.providers.replies import Ended, Piece, Reply, Teller

MAX_ANSWER_BYTES = 8 * 1024 * 1024
DEFAULT_MAX_TOKENS = 4096
"""Of a job whose model takes no such field."""
HEAD_START_S = 0.25  # the door gives up a little before the run does, and so can tell whether the request was out


class Ear(Protocol):
    """Listens to one streamed answer. `id`: the provider's name of it, once it was said."""

    id: str | None

    def hear(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        """What an event adds. Raises ProviderError for one that says what went wrong, and for what is not understood."""
        ...


class Speech(Protocol):
    """One interface for chats."""

    @property
    def auth(self) -> KeyForm: ...

    @property
    def options(self) -> Collection[str]:
        """Of OpenAI's, those that `body` has words for."""
        ...

    @property
    def config_keys(self) -> Collection[str]: ...

    def path(self, model: str, *, stream: bool) -> str:
        """Behind the provider's address."""
        ...

    def headers(self) -> dict[str, str]: ...

    def body(self, asked: Conversation, model: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
        """Raises ProviderError unsupported_input for what cannot be said."""
        ...

    def reply(self, value: Mapping[str, Any]) -> Reply:
        """Raises ProviderError provider_answer_invalid, and what the answer says went wrong."""
        ...

    def ear(self) -> Ear: ...

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The classified error of an answer that is no result."""
        ...


class Translator:
    """Answers calls (chat.Answering) and does jobs of texts, in one speech."""

    def __init__(self, tools: Tools, speech: Speech) -> None:
        self._tools = tools
        self._speech = speech

    async def run(self, call: ProviderCall) -> ProviderResult:
        """A job of texts or of a picture's description. Raises ProviderError; cancelling closes the connection."""
        base_url = self._address(call.base_url, call.config)
        asked = conversation.of_job(call, self._speech.options)
        most = int(call.input.get("max_tokens") or DEFAULT_MAX_TOKENS)
        body = orjson.dumps(self._speech.body(asked, call.provider_model, most, stream=False))
        await call.progress(10, "asking")
        url = base_url + self._speech.path(call.provider_model, stream=False)
        timeout_s = max(call.timeout_s - HEAD_START_S, call.timeout_s / 2)
        return replies.result(self._speech.reply(await self._asked(url, body, timeout_s, call.job_id, call.own_key)))

    async def whole(self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None) -> bytes:
        url, body = self._prepared(route, asked, model, stream=False)
        value = await self._asked(url, body, _timeout_s(route), job_id, route.own_key, leave)
        return self._teller(asked, job_id).whole(self._speech.reply(value))

    @asynccontextmanager
    async def stream(
        self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        url, body = self._prepared(route, asked, model, stream=True)
        speech = self._speech
        async with asking.streamed(
            self._tools.door, url, headers=self._headers(job_id), body=body, timeout_s=_timeout_s(route),
            refusal=speech.refusal, auth=speech.auth, own_key=route.own_key, leave=leave,
        ) as stream:  # fmt: skip

            async def told() -> AsyncIterator[bytes]:
                ear, teller = speech.ear(), self._teller(asked, job_id)
                async for event in asking.events(stream):
                    for piece in ear.hear(event):
                        teller.name(ear.id)
                        for said in teller.pieces(piece):
                            yield said
                        if isinstance(piece, Ended):
                            return
                raise ProviderError(
                    "provider_connection_lost", asking.CODES["connection_lost"][1], "retryable", outcome_unknown=True
                )

            yield told()

    async def _asked(
        self, url: str, body: bytes, timeout_s: float, job_id: UUID, own_key: SealedKey | None, leave: Leave = None
    ) -> dict[str, Any]:
        answer = await asking.ask(
            self._tools.door, "POST", url, headers=self._headers(job_id), body=body, timeout_s=timeout_s,
            max_bytes=MAX_ANSWER_BYTES, auth=self._speech.auth, own_key=own_key, leave=leave,
        )  # fmt: skip
        if answer.status != 200:
            raise self._speech.refusal(answer.status, answer.headers, answer.body)
        return asking.read_object(answer.body)

    def _prepared(self, route: Route, asked: Asked, model: Model, *, stream: bool) -> tuple[str, bytes]:
        if asked.surface is not chat.CHAT:
            raise verdicts.unsupported(asked.surface.path)
        base_url = self._address(route.base_url, route.config)
        said = conversation.read(asked.value, self._speech.options)
        most = asked.max_output or model.max_output_tokens
        body = self._speech.body(said, route.provider_model, most, stream=stream)
        return base_url + self._speech.path(route.provider_model, stream=stream), orjson.dumps(body)

    def _address(self, base_url: str | None, config: Mapping[str, Any]) -> str:
        try:
            rows.check_config(config, self._speech.config_keys)
            return rows.address(base_url)
        except ConfigInvalid as error:
            raise verdicts.misconfigured(error) from None

    def _teller(self, asked: Asked, job_id: UUID) -> Teller:
        return Teller(asked.model, int(self._tools.clock.now()), f"limner-{job_id}")

    def _headers(self, job_id: UUID) -> dict[str, str]:
        named = {"Content-Type": "application/json", "Accept": "*/*", "X-Client-Request-Id": str(job_id)}
        return named | self._speech.headers()


def _timeout_s(route: Route) -> float:
    return routing.timeout_s(route) or routing.CALL_TIMEOUT_S
