"""A request of the interface handed on as it is, to a server that speaks the same: its answer whole, or in pieces as they come."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from limner.egress.answers import EgressError
from limner.egress.fixed import FixedDoor
from limner.hub import chat, routing
from limner.hub.catalog import Model, Route
from limner.hub.chat import Asked
from limner.hub.providers import asking, verdicts
from limner.hub.providers.base import ConfigInvalid, Leave, ProviderError
from limner.hub.providers.openai_compatible import config, errors, exchange, requests
from limner.hub.providers.openai_compatible.config import Config

MAX_ANSWER_BYTES = 64 * 1024 * 1024


class Passing:
    """Calls that are answered at once, by providers that speak the interface themselves (chat.Answering)."""

    def __init__(self, door: FixedDoor) -> None:
        self._door = door

    async def whole(self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None) -> bytes:
        """The body of an answer of status 200, as it came. Raises ProviderError with the codes of verdicts.VERDICTS and asking.CODES."""
        configured, body = _prepared(route, asked, model)
        answer = await exchange.send(
            self._door, configured, "POST", asked.surface.path, body=body, headers=_headers(job_id),
            timeout_s=_timeout_s(route), max_bytes=MAX_ANSWER_BYTES, own_key=route.own_key,
            leave=leave,
        )  # fmt: skip
        if answer.status != 200:
            raise errors.failure(answer.status, answer.headers, errors.read_told(answer.body), ())
        if b'"error"' in answer.body and (value := asking.read_object(answer.body)).get("error"):
            said = errors.told(value)  # some gateways had sent their headers when it went wrong
            raise errors.failure(said.status or 502, answer.headers, said, ())
        return answer.body

    @asynccontextmanager
    async def stream(
        self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of an answer of status 200. Raises as `whole`, on the way too. Leaving early closes the connection."""
        configured, body = _prepared(route, asked, model)
        sent = exchange.headers_of(configured, _headers(job_id))
        try:
            async with self._door.stream(
                "POST",
                configured.base_url + asked.surface.path,
                headers=sent,
                body=body,
                timeout_s=_timeout_s(route),
                idle_s=asking.IDLE_S,
                own_key=route.own_key,
                leave=leave,
            ) as stream:
                if stream.status != 200:
                    raise errors.failure(
                        stream.status, stream.headers, errors.read_told(await asking.beginning(stream)), ()
                    )
                if not stream.headers.get("content-type", "").startswith("text/event-stream"):
                    said = errors.told(asking.read_object(await asking.beginning(stream)))
                    if said.words or said.code:
                        raise errors.failure(said.status or 502, stream.headers, said, ())
                    raise ProviderError("provider_answer_invalid", asking.NOT_STREAMED, "retryable")
                yield stream.chunks()
        except EgressError as error:
            raise asking.failure(error) from None


def _prepared(route: Route, asked: Asked, model: Model) -> tuple[Config, bytes]:
    """Raises ProviderError provider_misconfigured."""
    try:
        configured = config.read(route.base_url, route.config)
    except ConfigInvalid as error:
        raise verdicts.misconfigured(error) from None
    own = requests.gateway_fields(configured) if asked.surface.writes else chat.NOTHING
    return configured, chat.payload(asked, model, route.provider_model, configured.max_tokens_field, own)


def _timeout_s(route: Route) -> float:
    return routing.timeout_s(route) or routing.CALL_TIMEOUT_S


def _headers(job_id: UUID) -> dict[str, str]:
    return {"Content-Type": "application/json", "X-Client-Request-Id": str(job_id)}
