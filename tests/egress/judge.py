"""Inside the namespace: listeners on every address, which count whom they accepted, and the kernel's own count of attempts."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from limner.egress import addresses

TLS_PORTS = (443, 8443)
PORTS = (*TLS_PORTS, 22, 80, 3128, 5432, 6379, 8000, 8080)
HERE = "198.41.0.4"  # an address that is not loopback's, or the system's resolver finds no family worth asking for
ALL = (f"ip address add {HERE}/32 dev lo", "ip route add local 0.0.0.0/0 dev lo", "ip -6 route add local ::/0 dev lo")


def command(text: str) -> None:
    subprocess.run(text.split(), check=True, capture_output=True)


def lead_everything_here() -> None:
    """Every address, of both families, is this machine's: whoever connects anywhere is accepted, and seen."""
    for line in ("ip link set lo up", *ALL):
        command(line)


def attempts() -> int:
    """How often a process of this namespace began to connect by TCP, to whatever address and port, answered or not."""
    names, values = (
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    )
    return int(dict(zip(names, values, strict=True))["ActiveOpens"])


@dataclass
class Judge:
    """`accepted`: (address, port) of each connection, as the client meant it. `heads`: requests; `names`: what TLS was asked for."""

    tls: ssl.SSLContext
    answer: Callable[[str], bytes]
    accepted: list[tuple[str, int]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)

    async def listen(self) -> None:
        self.tls.sni_callback = lambda _, name, __: self.names.append(name)
        for port in PORTS:
            for host in ("0.0.0.0", "::"):
                await asyncio.start_server(self._serve, host, port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port = writer.get_extra_info("sockname")[:2]
        self.accepted.append((str(addresses.plain(address)), port))
        with suppress(OSError, asyncio.IncompleteReadError):
            if port in TLS_PORTS:
                await writer.start_tls(self.tls)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            writer.write(self.answer(head.split(" ")[1]))
            await writer.drain()
        writer.close()
