"""Scenarios for a network namespace of their own (see namespace.py): `python -m tests.egress.stage <scenario> <chain.pem> …`.

Each prints one line of JSON: what was tried, what came back, and what the judge saw.
"""

import asyncio
import json
import random
import re
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote_to_bytes

import uvloop

from limner.egress import addresses, urls
from limner.egress.answers import Answer, DestinationNotAllowed, EgressError
from limner.egress.destinations import Destinations
from limner.egress.fixed import FixedDoor
from limner.egress.resolving import DnsResolver
from limner.egress.untrusted import UntrustedDoor
from tests.egress import hostile, judge
from tests.egress.judge import Judge
from tests.emulators import nameserver, rogue
from tests.emulators.nameserver import Nameserver

GOOD, GOOD_6 = "93.184.216.34", "2606:4700::1111"
NAMES = hostile.RESOLVED | {
    "good.example.com": [GOOD],
    "six.example.com": [GOOD_6],
    "good.example.net": [GOOD],
    "api.openai.com": [GOOD],
}
OUTSIDE = "9.9.9.9"
MANUAL = Path(__file__).parents[2] / "docs" / "operate" / "network.md"


def answer(path: str) -> bytes:
    """`/to?…` redirects to what follows, byte for byte; `/` is fine."""
    if path.startswith("/to?"):
        return b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + unquote_to_bytes(path[4:]) + b"\r\n\r\n"
    return rogue.plain(200, b"fine")


async def outcome(work: Awaitable[Answer]) -> str:
    """`200` and so on, or an error's code."""
    try:
        return str((await work).status)
    except EgressError as error:
        return error.code


class Stage:
    """The doors, the judge and the nameserver of one scenario."""

    def __init__(self, judged: Judge, names: Nameserver) -> None:
        self.judge = judged
        self.nameserver = names
        self.door = UntrustedDoor(Destinations((), hostile.OWN_HOSTS, hostile.OWN_NETWORKS), DnsResolver([OUTSIDE]))

    def post(self, url: str) -> Awaitable[str]:
        return outcome(self.door.post(url, headers={"content-type": "application/json"}, body=b"{}"))

    def fetch(self, url: str) -> Awaitable[str]:
        return outcome(self.door.fetch(url, max_bytes=1000))

    async def seen(self, **facts: Any) -> dict[str, Any]:
        """`facts`, and what the judge has counted once everything that is under way has arrived."""
        await asyncio.sleep(0.2)
        accepted = Counter(f"{address} {port}" for address, port in self.judge.accepted)
        return facts | {"accepted": accepted, "attempts": judge.attempts()}


async def watched(stage: Stage, _: list[str]) -> dict[str, Any]:
    """The control: what connects without a door is seen, whatever way the address is written."""
    for host in ("0x7f.1", "2130706433", "169.254.169.254", "10.0.0.1", "fd00:ec2::254", "::ffff:192.168.0.1"):
        writer = (await asyncio.open_connection(host, 443))[1]
        writer.close()
    return await stage.seen()


async def all_hostile(stage: Stage, _: list[str]) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    for url in hostile.HOSTILE:
        codes[await stage.post(url)] += 1
        codes[await stage.fetch(url)] += 1
    return await stage.seen(codes=codes, questions=len(stage.nameserver.asked))


async def redirects(stage: Stage, arguments: list[str]) -> dict[str, Any]:
    """Every so manyth hostile URL as the place a good server redirects to."""
    codes: Counter[str] = Counter()
    for url in hostile.HOSTILE[:: int(arguments[0])]:
        quoted = "".join(f"%{byte:02x}" for byte in url.encode("utf-8", "surrogatepass")[:600])
        codes[await stage.fetch(f"https://good.example.com/to?{quoted}")] += 1
    return await stage.seen(codes=codes)


async def flips(stage: Stage, arguments: list[str]) -> dict[str, Any]:
    """Names that answer something else each time they are asked, by chance but the same in each run."""
    chance = random.Random(2026)
    bad = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::ffff:10.0.0.1", "fd00:ec2::254", "::1"]

    def flipped(_name: str, _kind: str) -> list[str]:
        good = [GOOD, GOOD_6]
        return chance.choice([good, good, good, [chance.choice(bad)], [*good, chance.choice(bad)]])

    stage.nameserver.answers = flipped
    codes: Counter[str] = Counter()
    for number in range(int(arguments[0])):
        codes[await stage.post(f"https://flip{number % 7}.example.com/")] += 1
    return await stage.seen(codes=codes, questions=len(stage.nameserver.asked))


async def rebound(stage: Stage, _: list[str]) -> dict[str, Any]:
    """A name that is good when it is asked first and private ever after: whoever asks twice connects to the wrong place."""
    told: Counter[str] = Counter()

    def once(_name: str, kind: str) -> list[str]:
        told[kind] += 1
        return [GOOD] if told[kind] == 1 else ["127.0.0.1"]

    stage.nameserver.answers = once
    codes = [await stage.fetch("https://rebind.example.com/"), await stage.fetch("https://rebind.example.com/")]
    return await stage.seen(codes=codes, questions=len(stage.nameserver.asked))


async def policy_alone(stage: Stage, _: list[str]) -> dict[str, Any]:
    """With the rules about a URL's text switched off, whatever can be sent at all."""
    codes: Counter[str] = Counter()
    readable = [url for url in hostile.HOSTILE if _readable(url)]
    with mock.patch.object(urls, "parse", lambda url, _: urls.read(url)):
        for url in readable:
            codes[await stage.post(url)] += 1
    return await stage.seen(codes=codes, tried=len(readable))


async def nothing_holds(stage: Stage, _: list[str]) -> dict[str, Any]:
    """With the address policy switched off and no other network than this one: the control of `network_alone`."""
    with mock.patch.object(addresses, "allowed", return_value=True):
        for name in hostile.RESOLVED:
            await stage.post(f"https://{name}/")
    return await stage.seen()


async def network_alone(stage: Stage, _: list[str]) -> dict[str, Any]:
    """The same behind the routes of docs/operate/network.md. Loopback has none: in a namespace nobody else listens there."""
    routed = re.findall(r"^for range in (.*?); do\n  (ip .*?prohibit) ", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    assert [command for _, command in routed] == ["ip route add prohibit", "ip -6 route add prohibit"]
    for ranges, command in routed:
        for text in ranges.replace("\\\n", " ").split():
            judge.command(f"{command} {text} table local")  # where the scenario's own routes are
    for text in hostile.OWN_NETWORKS:
        judge.command(f"ip {'-6 ' if ':' in text else ''}route add prohibit {text} table local")
    return await nothing_holds(stage, [])


async def honest(stage: Stage, _: list[str]) -> dict[str, Any]:
    """What is allowed works, by name: over IPv4, IPv6, and not where the certificate is somebody else's."""
    codes = [
        await stage.post("https://good.example.com/"),
        await stage.fetch("https://six.example.com/"),
        await stage.fetch("https://good.example.com:8443/to?/"),
        await stage.post("https://good.example.net/"),
    ]
    return await stage.seen(codes=codes, heads=stage.judge.heads, names=stage.judge.names)


async def fixed(stage: Stage, _: list[str]) -> dict[str, Any]:
    """Door 1 at a well-known host, as the system resolves it, and at what only looks like it."""
    door = FixedDoor(["api.openai.com"], [], {"https://api.openai.com": "sk-secret"})

    def get(url: str) -> Awaitable[str]:
        return outcome(door.request("GET", url, timeout_s=10, max_bytes=1000))

    system = next(
        (
            line.split()[1]
            for line in Path("/etc/resolv.conf").read_text().splitlines()
            if line.startswith("nameserver")
        ),
        "127.0.0.1",
    )
    async with nameserver.running(nameserver.table(NAMES), system, 53):
        codes = [
            await get("https://api.openai.com/v1/models"),
            await get("https://api.openai.com/to?https://good.example.com/"),
            await get("http://api.openai.com/"),
            await get("https://api.openai.com:8443/"),
            await get("https://good.example.com/"),
            await get("https://api.openai.com.example.com/"),
            await get("https://api.openai.com@good.example.com/"),
        ]
    await door.aclose()
    return await stage.seen(codes=codes, heads=stage.judge.heads)


def _readable(url: str) -> bool:
    try:
        urls.read(url)
    except DestinationNotAllowed:
        return False
    return True


SCENARIOS: dict[str, Callable[[Stage, list[str]], Awaitable[dict[str, Any]]]] = {
    scenario.__name__: scenario
    for scenario in (
        watched, all_hostile, redirects, flips, rebound, policy_alone, nothing_holds, network_alone, honest, fixed,
    )
}  # fmt: skip


async def main(scenario: str, chain: str, *arguments: str) -> None:
    judge.lead_everything_here()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain)
    judged = Judge(tls, answer)
    await judged.listen()
    async with nameserver.running(nameserver.table(NAMES), OUTSIDE, 53) as names:
        print(json.dumps(await SCENARIOS[scenario](Stage(judged, names), list(arguments))))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))  # as API and worker do
