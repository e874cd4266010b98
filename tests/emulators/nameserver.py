"""A DNS server over UDP that says whatever a test wants, each time anew: also something else than a moment ago."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Answers = Callable[[str, str], Sequence[str] | None]
"""(name, "A" or "AAAA") → addresses, of which those of that kind are told; None is NXDOMAIN. May raise to stay silent."""


class Silent(Exception):
    """The question is not answered at all."""


class Nameserver(asyncio.DatagramProtocol):
    """`asked`: every question, in order. `answers` may be changed at any time."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []
        self.port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.DatagramTransport, transport
        )  # no transport of asyncio or uvloop is an instance of it
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        try:
            found = self.answers(name, kind)
        except Silent:
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        wanted = [text for text in found or () if ip_address(text).version == (4 if kind == "A" else 6)]
        if wanted:
            response.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *wanted))
        self._transport.sendto(response.to_wire(max_size=65_535), addr)


def table(names: Mapping[str, Sequence[str]]) -> Answers:
    """The same answers each time; a name that is not there does not exist."""
    return lambda name, _kind: names.get(name)


@asynccontextmanager
async def running(answers: Answers, address: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Nameserver]:
    """One that listens; `table` makes answers of a dictionary."""
    transport, nameserver = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Nameserver(answers), local_addr=(address, port)
    )
    try:
        yield nameserver
    finally:
        transport.close()
