"""Door 1: hosts that the operator named, such as AI providers. Keys are attached here and nowhere else."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import aiohttp
from pydantic import SecretStr

from limner.egress import exchange, fields, urls
from limner.egress.answers import Answer, AnswerTooLarge, DestinationNotAllowed
from limner.egress.credentials import BEARER, KeyForm
from limner.egress.exchange import Sending
from limner.egress.own_keys import OwnKeys, OwnKeyUnusable, SealedKey
from limner.egress.urls import Target
from limner.kit import origins

CONNECT_S = 10.0
IDLE_KEPT_S = 15.0
MAX_CONNECTIONS = 512
STREAM_MAX_BYTES = 64 * 1024 * 1024

_KEY = re.compile(r"[\x21-\x7e]+")


class Stream:
    """An answer whose body comes in pieces. `status` and `headers` as in Answer."""

    def __init__(self, answer: aiohttp.ClientResponse, sending: Sending, ends_at: float, idle_s: float) -> None:
        self.status = answer.status
        self.headers: Mapping[str, str] = fields.incoming(answer.raw_headers)
        self._content = answer.content
        self._sending = sending
        self._ends_at = ends_at
        self._idle_s = idle_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, never empty pieces. Raises TimedOut after `idle_s` without one, or when the time of the whole
        is over; AnswerTooLarge after 64 MiB; ConnectionLost when it breaks off."""
        taken = 0
        while piece := await exchange.settled(self._next(), self._sending):
            taken += len(piece)
            if taken > STREAM_MAX_BYTES:
                raise AnswerTooLarge
            yield piece

    async def _next(self) -> bytes:
        now = asyncio.get_running_loop().time()
        async with asyncio.timeout_at(min(self._ends_at, now + self._idle_s)):
            return await self._content.readany()


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: Target
    headers: Mapping[str, str]
    body: bytes | None
    auth: KeyForm
    own_key: SealedKey | None


class FixedDoor:
    """Calls over https to `hosts`, on port 443, and to the exact origins of `plain_origins`, over whatever they name.

    `keys`: exact origin → secret, sent to that origin alone, in the form that a call's `auth` says. A call's `own_key` goes instead
    of it, and the other never does then. Redirects are answers, never followed. Connections are kept for the next call to the same
    origin. One door serves a process; it belongs to the event loop that first uses it.
    """

    def __init__(
        self,
        hosts: Collection[str],
        plain_origins: Collection[str],
        keys: Mapping[str, str],
        own: OwnKeys | None = None,
    ) -> None:
        """`own` opens organizations' keys; without it none is.

        Raises ValueError for what is no host, no origin, or no key; no message repeats a key.
        """
        self._hosts = frozenset(origins.host(host) for host in hosts)
        self._origins = frozenset(origins.normal(origin) for origin in plain_origins)
        self._keys = {origins.normal(origin): SecretStr(key) for origin, key in keys.items()}
        if any(not _KEY.fullmatch(key.get_secret_value()) for key in self._keys.values()):
            raise ValueError("a key has characters that no header may have, or none at all")
        self._own = own
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Ends kept connections, and calls that are under way."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None,
        timeout_s: float, max_bytes: int, auth: KeyForm = BEARER, own_key: SealedKey | None = None,
        leave: Awaitable[None] | None = None,
    ) -> Answer:  # fmt: skip
        """The answer, within `timeout_s` and with a body of at most `max_bytes`. `leave`: without it nothing is sent and no
        connection taken, but everything is made ready; the time counts from there.

        Raises the EgressErrors, and ValueError for a header that is not the caller's to set (`authorization` and
        the header of `auth` above all).
        """
        request = self._request(method, url, headers, body, auth, own_key)
        limit, sending = _bounds(leave, timeout_s)
        return await exchange.settled(self._whole(request, sending, limit, max_bytes), sending)

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None,
        timeout_s: float, idle_s: float, auth: KeyForm = BEARER, own_key: SealedKey | None = None,
        leave: Awaitable[None] | None = None,
    ) -> AsyncIterator[Stream]:  # fmt: skip
        """As `request`, open from the answer's headers on. `timeout_s` bounds the whole, body included, and `idle_s` each
        wait: for the headers and for the next piece. Leaving early ends the connection."""
        request = self._request(method, url, headers, body, auth, own_key)
        head_s = min(timeout_s, idle_s)
        limit, sending = _bounds(leave, head_s)
        answer = await exchange.settled(self._opened(request, sending, limit), sending)
        try:
            head_by = limit.when()
            assert head_by is not None  # it had its leave, or needed none
            yield Stream(answer, sending, head_by - head_s + timeout_s, idle_s)
        finally:
            answer.close()

    def _request(
        self,
        method: str,
        url: str,
        given: Mapping[str, str] | None,
        body: bytes | None,
        auth: KeyForm,
        own_key: SealedKey | None,
    ) -> _Request:
        target = urls.read(url)
        known = target.scheme == "https" and target.port == origins.PORTS["https"] and target.host in self._hosts
        if not known and target.origin not in self._origins:
            raise DestinationNotAllowed
        headers = fields.outgoing(given)
        if auth.header in headers:
            raise ValueError(f"the header {auth.header} is not the caller's to set")
        return _Request(method, target, headers, body, auth, own_key)

    async def _whole(self, request: _Request, sending: Sending, limit: asyncio.Timeout, max_bytes: int) -> Answer:
        async with limit:
            answer = await self._ask(request, sending)
            try:
                body = await exchange.read(answer, max_bytes)
            finally:
                answer.close()
        return Answer(answer.status, fields.incoming(answer.raw_headers), body)

    async def _opened(self, request: _Request, sending: Sending, limit: asyncio.Timeout) -> aiohttp.ClientResponse:
        async with limit:
            return await self._ask(request, sending)

    def _ask(self, request: _Request, sending: Sending) -> Awaitable[aiohttp.ClientResponse]:
        # the key exists in clear only in this call's arguments: no local of a frame that a traceback could print
        return exchange.ask(
            self._client(),
            request.method,
            request.target,
            {**request.headers, **self._credentials(request)},
            request.body,
            sending,
        )

    def _credentials(self, request: _Request) -> dict[str, str]:
        own, origin, auth = request.own_key, request.target.origin, request.auth
        key = self._keys.get(origin) if own is None else self._unsealed(own, origin)
        return {} if key is None else {auth.header: f"{auth.prefix}{key.get_secret_value()}"}

    def _unsealed(self, own_key: SealedKey, origin: str) -> SecretStr:
        """Raises OwnKeyUnusable: a key that does not open is never another's turn."""
        if self._own is None:
            raise OwnKeyUnusable
        return SecretStr(self._own.opened(own_key, origin))

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=IDLE_KEPT_S)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            self._session = exchange.session(connector, timeout)
        return self._session


def _bounds(leave: Awaitable[None] | None, timeout_s: float) -> tuple[asyncio.Timeout, Sending]:
    """The time of a request, from its leave on where it needs one, and whether any of it has left."""
    if leave is None:
        return asyncio.timeout(timeout_s), Sending()
    limit = asyncio.timeout(None)
    return limit, Sending(partial(_left, leave, limit, timeout_s))


async def _left(leave: Awaitable[None], limit: asyncio.Timeout, timeout_s: float) -> None:
    await leave
    limit.reschedule(asyncio.get_running_loop().time() + timeout_s)
