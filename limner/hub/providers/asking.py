"""One exchange through the door, and how a door's refusals read to a run: what every adapter of a far server does."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from limner.egress.answers import Answer, EgressError
from limner.egress.credentials import BEARER, KeyForm
from limner.egress.fixed import FixedDoor, Stream
from limner.egress.own_keys import SealedKey
from limner.hub.providers import verdicts
from limner.hub.providers.base import ErrorKind, Leave, ProviderError

CODES: dict[str, tuple[str, str, ErrorKind]] = {
    "destination_not_allowed": (
        "provider_not_allowed",
        "The provider's address is not one that limner may call.",
        "fatal",
    ),
    "connect_failed": ("provider_unreachable", "The provider cannot be reached.", "retryable"),
    "timeout": ("provider_timeout", "The provider did not answer in time.", "retryable"),
    "connection_lost": ("provider_connection_lost", "The connection to the provider was lost.", "retryable"),
    "own_key_unusable": ("own_key_unusable", "The organization's own key cannot be used here: give it again.", "auth"),
    "answer_too_large": ("provider_answer_too_large", "The provider's answer is too large.", "retryable"),
}
MAX_ERROR_BYTES = 64 * 1024
MAX_EVENT_BYTES = 4 * 1024 * 1024
IDLE_S = 120.0
"""How long a stream may say nothing."""
EVENTS = "text/event-stream"
NOT_STREAMED = "The provider answers at once where a stream was asked for."
Refusal = Callable[[int, Mapping[str, str], bytes], ProviderError]
"""The classified error of an answer: status, headers, body."""


async def ask(
    door: FixedDoor, method: str, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int,
    body: bytes | None = None, auth: KeyForm = BEARER, own_key: SealedKey | None = None, leave: Leave = None,
) -> Answer:  # fmt: skip
    """The answer, whatever its status. The door attaches the key in the form `auth`: the organization's own where there is one.

    Raises ProviderError with the codes of CODES: the outcome is unknown where the request may have left.
    """
    try:
        return await door.request(
            method, url, headers=headers, body=body, timeout_s=timeout_s, max_bytes=max_bytes, auth=auth,
            own_key=own_key, leave=leave,
        )  # fmt: skip
    except EgressError as error:
        raise failure(error) from None


@asynccontextmanager
async def streamed(
    door: FixedDoor, url: str, *, headers: Mapping[str, str], body: bytes, timeout_s: float, refusal: Refusal,
    auth: KeyForm = BEARER, own_key: SealedKey | None = None, leave: Leave = None,
) -> AsyncIterator[Stream]:  # fmt: skip
    """A stream of events of status 200. Raises ProviderError as `ask`, and what `refusal` makes of anything else.

    Leaving early closes the connection; what the door says while the stream is read is a ProviderError, too.
    """
    try:
        async with door.stream(
            "POST", url, headers=headers, body=body, timeout_s=timeout_s, idle_s=IDLE_S, auth=auth,
            own_key=own_key, leave=leave,
        ) as stream:  # fmt: skip
            if stream.status != 200:
                raise refusal(stream.status, stream.headers, await beginning(stream))
            if not stream.headers.get("content-type", "").startswith(EVENTS):
                raise ProviderError("provider_answer_invalid", NOT_STREAMED, "retryable")
            yield stream
    except EgressError as error:
        raise failure(error) from None


async def events(stream: Stream) -> AsyncIterator[dict[str, Any]]:
    """The objects in the data of a stream's events (WHATWG HTML, 9.2), comments and names left out.

    Raises ProviderError provider_answer_invalid for what is no JSON object, and an event without an end.
    """
    rest = b""
    async for piece in stream.chunks():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield read_object(line[5:])
        if len(rest) > MAX_EVENT_BYTES:
            raise verdicts.invalid("an event without an end")
    if rest.startswith(b"data:"):
        yield read_object(rest[5:])


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object (RFC 8259) of a body. Raises ProviderError provider_answer_invalid."""
    try:
        value = orjson.loads(body)
    except ValueError:
        raise verdicts.invalid("no JSON") from None
    if not isinstance(value, dict):
        raise verdicts.invalid("no JSON object")
    return value


async def beginning(stream: Stream) -> bytes:
    """Of a body that says what went wrong."""
    body = b""
    async for piece in stream.chunks():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    return body[:MAX_ERROR_BYTES]


def failure(error: EgressError) -> ProviderError:
    """A door's refusal as a run reads it."""
    code, words, kind = CODES.get(error.code, CODES["connection_lost"])
    return ProviderError(code, words, kind, outcome_unknown=error.sent)
