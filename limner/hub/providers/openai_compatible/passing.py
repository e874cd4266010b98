"""A request of the interface handed on as it is, to a server that speaks the same: its answer whole, or in pieces as they come."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from limner.egress.answers import Answer, EgressError
from limner.egress.fixed import FixedDoor, Stream
from limner.hub.catalog import Route
from limner.hub.providers.base import ConfigInvalid, ProviderError
from limner.hub.providers.openai_compatible import answers, config, errors, exchange
from limner.hub.providers.openai_compatible.config import Config

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
IDLE_S = 120.0
"""How long a stream may say nothing."""
NOT_STREAMED = "The provider answers at once where a stream was asked for."


class PassingDoor:
    """The way to providers for calls that are answered at once."""

    def __init__(self, door: FixedDoor) -> None:
        self._door = door

    def configured(self, route: Route) -> Config:
        """Raises ProviderError provider_misconfigured."""
        try:
            return config.read(route.base_url, route.config)
        except ConfigInvalid as error:
            raise ProviderError("provider_misconfigured", f"The provider's {error}.", "fatal") from None

    async def whole(self, settled: Config, path: str, body: bytes, job_id: UUID, timeout_s: float) -> Answer:
        """An answer of status 200. Raises ProviderError with the codes of errors.VERDICTS and exchange.CODES."""
        answer = await exchange.send(
            self._door, settled, "POST", path, body=body, headers=_headers(job_id), timeout_s=timeout_s,
            max_bytes=MAX_ANSWER_BYTES,
        )  # fmt: skip
        if answer.status != 200:
            raise errors.failure(answer.status, answer.headers, errors.read_told(answer.body), ())
        return answer

    @asynccontextmanager
    async def stream(
        self, settled: Config, path: str, body: bytes, job_id: UUID, timeout_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of an answer of status 200. Raises as `whole`, on the way too. Leaving early closes the connection."""
        sent = exchange.headers_of(settled, _headers(job_id))
        try:
            async with self._door.stream(
                "POST", settled.base_url + path, headers=sent, body=body, timeout_s=timeout_s, idle_s=IDLE_S
            ) as stream:
                if stream.status != 200:
                    said = errors.read_told(await _begin(stream))
                    raise errors.failure(stream.status, stream.headers, said, ())
                kind = stream.headers.get("content-type", "")
                if not kind.startswith("text/event-stream"):
                    value = answers.read_object(await _begin(stream))
                    said = errors.told(value)
                    if value.get("error"):
                        raise errors.failure(said.status or 502, stream.headers, said, ())
                    raise ProviderError("provider_answer_invalid", NOT_STREAMED, "retryable")
                yield stream.chunks()
        except EgressError as error:
            raise exchange.failure(error) from None


def _headers(job_id: UUID) -> dict[str, str]:
    return {"Content-Type": "application/json", "X-Client-Request-Id": str(job_id)}


async def _begin(stream: Stream) -> bytes:
    """The beginning of a body that says what went wrong."""
    body = b""
    async for piece in stream.chunks():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    return body[:MAX_ERROR_BYTES]
