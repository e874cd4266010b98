"""Streams through the gateway: what it adds until the first token, and what hundreds at once cost one process on one core."""

import argparse
import asyncio
import sys
import time
from typing import Any

import psutil
import uvloop

from bench import rig
from bench.gateway import APP_RATE, USER_RATE, process, request, sell
from tests.running import Api, free_port

TOKENS = 60
TOKEN_S = 0.05
LONGEST_S = 60.0


async def first_token_s(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes) -> float:
    """Send, and read to the end: seconds until the first event."""
    sent = time.perf_counter()
    writer.write(asked)
    await reader.readuntil(b"data: ")
    came = time.perf_counter() - sent
    await reader.readuntil(b"data: [DONE]")
    await reader.readuntil(b"\r\n0\r\n\r\n")
    return came


async def firsts(url: str, asked: list[bytes], count: int) -> list[float]:
    """One after another over one connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    found = [await first_token_s(reader, writer, asked[n % len(asked)]) for n in range(count)]
    writer.close()
    return found


async def at_once(url: str, asked: list[bytes], streams: int) -> dict[str, Any]:
    """All opened together, each on a connection of its own; one that does not end as it should is lost."""
    host, port = url.removeprefix("http://").split(":")

    async def one(number: int) -> float | None:
        try:
            async with asyncio.timeout(LONGEST_S):
                reader, writer = await asyncio.open_connection(host, int(port), limit=2**16)
                came = await first_token_s(reader, writer, asked[number % len(asked)])
                writer.close()
                return came
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return None

    ended = await asyncio.gather(*(one(number) for number in range(streams)))
    whole = [came for came in ended if came is not None]
    return {"streams": streams, "lost": streams - len(whole), "first_p50_ms": rig.quantile_ms(whole, 0.5),
            "first_p99_ms": rig.quantile_ms(whole, 0.99)}  # fmt: skip


async def watched(api: Api, asked: list[bytes], streams: int) -> dict[str, Any]:
    """The same, with the most memory that the process had meanwhile."""
    seen = psutil.Process(api.popen.pid)
    work = asyncio.create_task(at_once(api.url, asked, streams))
    most = 0
    while not work.done():
        most = max(most, seen.memory_info().rss)
        await asyncio.wait([work], timeout=0.1)
    return await work | {"rss_mb": round(most / 2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=500)
    args = parser.parse_args()
    quick, slow = free_port(), free_port()
    command = [sys.executable, "-m", "bench.upstream", "--port"]
    paced = ["--token-s", str(TOKEN_S), "--tokens", str(TOKENS)]
    with process([*command, str(quick)], quick, 1), process([*command, str(slow), *paced], slow, 1), rig.rig() as bench:
        rig.pin_others(bench.embedded, core=1)
        facts: dict[str, Any] = {}
        for name, port in (("first", quick), ("many", slow)):
            upstream = f"http://127.0.0.1:{port}"
            app = asyncio.run(sell(bench, upstream))
            api = bench.api(
                0,
                LIMNER_EGRESS_PLAIN_ORIGINS=upstream,
                LIMNER_USER_JOBS_PER_MIN=USER_RATE,
                LIMNER_APP_JOBS_PER_MIN=APP_RATE,
            )
            asked = [
                request(api.url, {"Authorization": f"Bearer {app.key}", "X-User-ID": user}, stream=True)
                for user in app.users
            ]
            try:
                if name == "first":
                    uvloop.run(firsts(api.url, asked, 100))
                    direct = uvloop.run(firsts(upstream, [request(upstream, {}, stream=True)], args.calls))
                    through = uvloop.run(firsts(api.url, asked, args.calls))
                    ours, theirs = rig.quantile_ms(through, 0.5), rig.quantile_ms(direct, 0.5)
                    facts |= {"first_token_p50_ms": ours, "direct_p50_ms": theirs, "added_p50_ms": round(ours - theirs, 2),
                              "first_token_p99_ms": rig.quantile_ms(through, 0.99)}  # fmt: skip
                else:
                    facts |= uvloop.run(watched(api, asked, args.streams))
            finally:
                rig.stop(api)
        with rig.superuser(bench) as conn:
            held = conn.execute("SELECT coalesce(sum(held_mc), 0) FROM limner.wallet").fetchone()
        assert held is not None
        facts["still_held_mc"] = int(held[0])
    rows = [
        ("first token at one client: through limner, direct, added (p50)",
         f"{facts['first_token_p50_ms']} ms, {facts['direct_p50_ms']} ms, {facts['added_p50_ms']} ms"),
        (f"{args.streams} streams of {TOKENS} tokens at once: lost, first token p50 / p99, resident",
         f"{facts['lost']}, {facts['first_p50_ms']} / {facts['first_p99_ms']} ms, {facts['rss_mb']} MB"),
    ]  # fmt: skip
    rig.report("gateway_streams", rows, facts)


if __name__ == "__main__":
    main()
