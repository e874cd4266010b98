"""A connector that knows one address, and lets nothing be sent before it has seen that it is connected to it."""

import asyncio
import socket
import ssl

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ClientRequest
from aiohttp.tracing import Trace

from limner.egress import addresses
from limner.egress.answers import DestinationNotAllowed


class PinnedConnector(aiohttp.TCPConnector):
    """Every name is `address`, which somebody has checked; there is no second look-up that could say otherwise.

    The name of the URL stays what TLS asks for and checks (SNI, certificate) and what `Host` says. No connection is used twice.
    """

    def __init__(self, address: addresses.Address, tls: ssl.SSLContext) -> None:
        super().__init__(
            resolver=_OneAddress(address), use_dns_cache=False, force_close=True, limit=1, ssl=tls, happy_eyeballs_delay=None
        )  # fmt: skip
        self._address = address
        self._transport: asyncio.Transport | None = None

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> aiohttp.connector.Connection:  # fmt: skip
        """As TCPConnector, after which the peer's address is compared (`getpeername`). Raises DestinationNotAllowed."""
        connection = await super().connect(req, traces, timeout)
        self._transport = connection.transport
        peer = connection.transport.get_extra_info("peername") if connection.transport else None
        if peer is None:
            connection.close()
            raise aiohttp.ClientConnectionError("the connection was gone before it could be used")
        if addresses.plain(peer[0]) != self._address:
            connection.close()
            raise DestinationNotAllowed
        return connection

    async def close(self, *, abort_ssl: bool = False) -> None:
        """At once: a peer that never answers the end of TLS would keep the socket for half a minute."""
        await super().close(abort_ssl=abort_ssl)
        if self._transport is not None:
            self._transport.abort()


class _OneAddress(AbstractResolver):
    def __init__(self, address: addresses.Address) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - the address has one
    ) -> list[ResolveResult]:  # fmt: skip
        return [
            ResolveResult(
                hostname=host,
                host=str(self._address),
                port=port,
                family=socket.AF_INET if self._address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""
