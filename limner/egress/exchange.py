"""One HTTP exchange, as both doors make it: what is never asked for, the limits of an answer, and how failures are told.

No proxies and no .netrc (`trust_env=False`), no cookies, no redirects, no decompression, HTTP/1.1 alone (aiohttp speaks no other).
"""

import io
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from yarl import URL

from limner.egress.answers import AnswerTooLarge, ConnectFailed, ConnectionLost, EgressError, TimedOut
from limner.egress.urls import Target

MAX_HEADER_BYTES = 32 * 1024
MAX_LINE_BYTES = 8 * 1024
MAX_HEADERS = 128
AT_ONCE = 64 * 1024
"""Bytes of a body that go out in one piece, with the headers; a longer one in several, or it would hold up the event loop."""

T = TypeVar("T")

_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError)


class Sending:
    """Of one request: whether any of it may have left. `ready` is awaited before a connection is taken for it."""

    __slots__ = ("begun", "ready")

    def __init__(self, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        self.begun = False
        self.ready = ready

    async def __call__(self, request: aiohttp.ClientRequest, go: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """aiohttp's middleware: stands between a request that is built and its connection."""
        assert isinstance(request, _Request)
        request.sending = self
        if self.ready is not None:
            await self.ready()
        return await go(request)


class _Request(aiohttp.ClientRequest):
    sending: Sending

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        self.sending.begun = True  # the next byte is handed to the connection
        return await super().send(conn)


def session(connector: aiohttp.BaseConnector, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """A client session over `connector`, which it closes with itself. Made inside the running loop."""
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        request_class=_Request,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        max_headers=MAX_HEADERS,
    )


async def ask(
    client: aiohttp.ClientSession, method: str, target: Target, headers: Mapping[str, str], body: bytes | None,
    sending: Sending,
) -> aiohttp.ClientResponse:  # fmt: skip
    """The answer up to its body; whoever asked closes it. Raises AnswerTooLarge, and what aiohttp raises (see `settled`)."""
    answer = await client.request(
        method,
        URL(target.url, encoded=True),
        headers=headers,
        data=body if body is None or len(body) <= AT_ONCE else io.BytesIO(body),
        allow_redirects=False,
        middlewares=(sending,),
    )
    if sum(len(name) + len(value) + len(": \r\n") for name, value in answer.raw_headers) > MAX_HEADER_BYTES:
        answer.close()
        raise AnswerTooLarge("the headers of the answer are larger than allowed")
    return answer


async def read(answer: aiohttp.ClientResponse, max_bytes: int, *, cut: bool = False) -> bytes:
    """The body. One longer than `max_bytes` is cut there, or raises AnswerTooLarge, at once where its length is announced."""
    if not cut and answer.method != "HEAD" and (answer.content_length or 0) > max_bytes:
        raise AnswerTooLarge
    parts = bytearray()
    while len(parts) <= max_bytes and (part := await answer.content.readany()):
        parts += part
    if len(parts) > max_bytes and not cut:
        raise AnswerTooLarge
    del parts[max_bytes:]
    return bytes(parts)


async def settled(work: Awaitable[T], sending: Sending) -> T:
    """What `work` gives, or its failure as an EgressError.

    That is raised after the handler, not in it: aiohttp's own errors hold the request's headers, keys among them, and would
    hang on it as its context.
    """
    try:
        return await work
    except EgressError:
        raise
    except _FAILURES as error:
        failure = _failure(error, sending.begun)
    raise failure


def _failure(error: Exception, begun: bool) -> EgressError:
    if isinstance(error, TimeoutError):
        return TimedOut(sent=begun)
    if not begun:
        return ConnectFailed()
    if _lines_too_long(error):
        return AnswerTooLarge("the headers of the answer are larger than allowed")
    return ConnectionLost()


def _lines_too_long(error: BaseException | None) -> bool:
    """Whether aiohttp's parser refused the size of headers, somewhere along the causes of `error`."""
    while error is not None:
        if isinstance(error, LineTooLong) or (isinstance(error, BadHttpMessage) and "Too many" in error.message):
            return True
        error = error.__cause__
    return False
