"""Names to addresses, asked of DNS itself: /etc/hosts, search domains and caches have no say about strangers' names."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Protocol

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype

LIFETIME_S = 2.5
TRY_S = 1.0


class Resolver(Protocol):
    """Who turns names into addresses for the door to strangers' URLs."""

    async def resolve(self, name: str) -> Sequence[str]:
        """All addresses of `name`, IPv4 and IPv6, as texts; none when it has none or nobody could say."""
        ...


class DnsResolver:
    """Asks `nameservers` (addresses, on `port`), or those of /etc/resolv.conf, for A and AAAA records, each time anew.

    A family whose question fails counts as empty: what was not answered is never connected to.
    """

    def __init__(self, nameservers: Collection[str] = (), port: int = 53) -> None:
        self._nameservers = list(nameservers)
        self._port = port

    async def resolve(self, name: str) -> list[str]:
        """Addresses, IPv4 first. `localhost` is answered here, as RFC 6761 asks of resolvers."""
        if name == "localhost":
            return ["127.0.0.1", "::1"]
        try:
            resolver = self._resolver()
        except (dns.exception.DNSException, OSError):
            return []
        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        answers = await asyncio.gather(*(self._ask(resolver, name, kind) for kind in kinds))
        return [address for found in answers for address in found]

    def _resolver(self) -> dns.asyncresolver.Resolver:
        """Made for each question: /etc/resolv.conf changes on machines that move between networks, and costs little to read."""
        resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = list(self._nameservers)
        resolver.port = self._port
        resolver.timeout = TRY_S
        return resolver

    async def _ask(self, resolver: dns.asyncresolver.Resolver, name: str, kind: dns.rdatatype.RdataType) -> list[str]:
        try:
            answer = await resolver.resolve(
                dns.name.from_text(name),  # absolute: no search domain is put behind it
                kind,
                raise_on_no_answer=False,
                lifetime=LIFETIME_S,
                search=False,
                backend=dns.asyncbackend.get_backend("asyncio"),
            )
        except (dns.exception.DNSException, OSError):
            return []
        return [record.to_text() for record in answer.rrset or ()]
