"""Door 2: URLs that strangers gave, such as webhook endpoints and pictures to import. limner goes where they say, and must
not be led into the network it stands in.

Each request: the URL is read strictly (`urls`), its name is resolved once, every address must be public (`addresses`), and
the connection goes to the very address that was checked (`pinned`). What changes in DNS after that changes nothing.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from limner.egress import addresses, exchange, fields, urls
from limner.egress.addresses import Address
from limner.egress.answers import Answer, DestinationNotAllowed, EgressError
from limner.egress.destinations import Destinations
from limner.egress.exchange import Sending
from limner.egress.pinned import PinnedConnector
from limner.egress.resolving import DnsResolver, Resolver
from limner.egress.urls import Target
from limner.kit import origins
from limner.telemetry import logs

RESOLVE_S = 3.0
CONNECT_S = 3.0
SILENCE_S = 10.0
POST_S = 15.0
FETCH_S = 30.0
MAX_ADDRESSES = 16
MAX_REDIRECTS = 3
POST_KEEPS_BYTES = 64 * 1024
FETCH_MAX_BYTES = 20 * 1024 * 1024

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    headers: Mapping[str, str]
    body: bytes | None
    max_bytes: int
    cut: bool


class UntrustedDoor:
    """One door serves a process. It keeps no connection and nothing else between two requests."""

    def __init__(self, destinations: Destinations, resolver: Resolver | None = None) -> None:
        self._destinations = destinations
        self._resolver: Resolver = resolver or DnsResolver()
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Answer:
        """POSTs `body` as it is, within 15 s. Of the answer 64 KiB are kept; a redirect is an answer and is not followed.

        Raises the EgressErrors, and ValueError for a header that is not the caller's to set.
        """
        request = _Request("POST", fields.outgoing(headers), body, POST_KEEPS_BYTES, cut=True)
        sending = Sending()
        return await exchange.settled(self._post(url, request, sending), sending)

    async def fetch(self, url: str, *, max_bytes: int) -> Answer:
        """GETs `url` within 30 s, over at most three redirects, each of which is held to every rule anew. At most `max_bytes`
        and 20 MiB of body. The answer may have any status.

        Raises the EgressErrors, whose `sent` is about the last hop; DestinationNotAllowed also for a redirect too many.
        """
        request = _Request("GET", fields.outgoing(None), None, min(max_bytes, FETCH_MAX_BYTES), cut=False)
        sending = Sending()
        return await exchange.settled(self._fetch(url, request, sending), sending)

    async def aclose(self) -> None:
        """Nothing is open between two requests; one that is under way ends by its own limits."""

    async def _post(self, url: str, request: _Request, sending: Sending) -> Answer:
        async with asyncio.timeout(POST_S):
            return await self._ask(self._destinations.parse(url), request, sending)

    async def _fetch(self, url: str, request: _Request, sending: Sending) -> Answer:
        async with asyncio.timeout(FETCH_S):
            target = self._destinations.parse(url)
            for _ in range(MAX_REDIRECTS + 1):
                sending.begun = False  # of this hop
                answer = await self._ask(target, request, sending)
                if answer.status not in _REDIRECTS or "location" not in answer.headers:
                    return answer
                target = self._destinations.parse(urls.joined(target, answer.headers["location"]))
        raise DestinationNotAllowed("there are too many redirects")

    async def _ask(self, target: Target, request: _Request, sending: Sending) -> Answer:
        """Of the first address that lets itself be connected to: the other is tried only while nothing was sent."""
        *first, last = await self._addresses(target)
        for address in first:
            try:
                return await exchange.settled(self._exchange(target, address, request, sending), sending)
            except DestinationNotAllowed:
                raise
            except EgressError as failure:
                if failure.sent:
                    raise
        return await self._exchange(target, last, request, sending)

    async def _addresses(self, target: Target) -> list[Address]:
        """One checked address of each family that the name has, IPv4 first. Raises DestinationNotAllowed."""
        answers = [target.host] if origins.is_address(target.host) else await self._resolve(target.host)
        found = [address for text in answers if (address := addresses.plain(text)) is not None]
        if not answers or len(answers) > MAX_ADDRESSES or len(found) != len(answers):
            raise self._refusal(target, "unresolved")
        if not self._destinations.allows(target, answers):
            raise self._refusal(target, "address")
        chosen: dict[int, Address] = {}
        for address in found:
            chosen.setdefault(address.version, address)
        return [chosen[version] for version in sorted(chosen)]

    async def _resolve(self, name: str) -> list[str]:
        try:
            async with asyncio.timeout(RESOLVE_S):
                return list(await self._resolver.resolve(name))
        except (TimeoutError, OSError):
            return []

    def _refusal(self, target: Target, reason: str) -> DestinationNotAllowed:
        log.info("egress.refused", host=target.host, reason=reason)  # for the operator: the caller learns no reason
        return DestinationNotAllowed()

    async def _exchange(self, target: Target, address: Address, request: _Request, sending: Sending) -> Answer:
        async with exchange.session(PinnedConnector(address, self._tls), TIMEOUT) as client:
            async with asyncio.timeout(CONNECT_S + SILENCE_S):  # aiohttp's own ends with the first interim answer (1xx)
                answer = await exchange.ask(client, request.method, target, request.headers, request.body, sending)
            try:
                follow = not request.cut and answer.status in _REDIRECTS
                body = b"" if follow else await exchange.read(answer, request.max_bytes, cut=request.cut)
            finally:
                answer.close()
            return Answer(answer.status, fields.incoming(answer.raw_headers), body)
