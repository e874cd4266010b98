"""Normal requests beside a thousand slow connections and a stream of hostile bodies: their p99 against the same traffic alone."""

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event

import orjson
import uvloop

from bench import rig
from tests.web import hostile, raw

BODY = orjson.dumps({"model": "local/canvas", "input": {"prompt": "A quiet harbour at sunset"}})
PATIENCE_S = 300.0
OPEN_S = 5.0
PAUSE_S = 1.0
"""Between two bytes of a slow connection: a thousand of them are slow, not a flood."""


@dataclass
class Measured:
    """Seconds from the moment at which each request was due, so that a request held up by the one before it counts."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


async def paced(url: str, requests: list[bytes], per_s: float, lanes: int, seconds: float, into: Measured) -> None:
    """Requests at a steady pace over so many keep-alive connections."""
    host, port = url.removeprefix("http://").split(":")
    step = lanes / per_s
    begin = time.perf_counter() + 0.1

    async def lane(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for turn, request in zip(range(int(seconds / step)), itertools.cycle(requests), strict=False):
            due = begin + (turn + number / lanes) * step
            await asyncio.sleep(max(0, due - time.perf_counter()))
            writer.write(request)
            reply = await raw.read(reader)
            into.seconds.append(time.perf_counter() - due)
            into.statuses[reply.status] += 1
        writer.close()

    await asyncio.gather(*(lane(number) for number in range(lanes)))


def attack(target: hostile.Target, slow: int, bodies: int, seconds: float, core: int, ready: Event) -> None:
    """In a process of its own: opens so many slow connections, one after another, keeps them open and then sends so many
    bodies in this time, evenly.
    """
    rig.pin(os.getpid(), core)
    hostile.PAUSE_S = PAUSE_S
    os.nice(19)

    async def once(start: hostile.Attack) -> None:
        with contextlib.suppress(OSError):
            await start(PATIENCE_S)

    async def again(start: hostile.Attack) -> None:
        while True:
            await once(start)

    async def send(starts: list[hostile.Attack]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for start in starts:
                tasks.create_task(once(start))
                await asyncio.sleep(seconds / max(len(starts), 1))

    async def run() -> None:
        made = hostile.bodies(target, bodies, seed=14)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as over, asyncio.TaskGroup() as tasks:
                for start in hostile.slow(target, slow):
                    tasks.create_task(again(start))
                    await asyncio.sleep(OPEN_S / slow)
                ready.set()
                over.reschedule(asyncio.get_running_loop().time() + seconds + 1)
                tasks.create_task(send(made))

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="of each part")
    parser.add_argument("--rounds", type=int, default=3, help="alone, then beside the attack, so many times")
    parser.add_argument("--per-s", type=int, default=100, help="normal requests a second")
    parser.add_argument("--slow", type=int, default=1000)
    parser.add_argument("--bodies", type=int, default=200)
    args = parser.parse_args()
    alone, beside = Measured(), Measured()
    spawn = multiprocessing.get_context("spawn")
    with rig.rig() as bench:
        [app, attacker] = asyncio.run(_tenants(bench))
        rig.pin_others(bench.embedded, core=1)
        api = bench.api(core=0)
        try:
            requests = [rig.post(api.url, "/api/v1/generate", app.key, user, BODY) for user in app.users]
            target = hostile.Target(api.url, attacker.key, "/media/outputs/none/0.png?e=1&s=none")
            uvloop.run(paced(api.url, requests, args.per_s, 8, 3, Measured()))  # warm
            before, most = rig.resident_mb(api), 0
            for _ in range(args.rounds):
                uvloop.run(paced(api.url, requests, args.per_s, 8, args.seconds, alone))
                ready = spawn.Event()
                order = (target, args.slow, args.bodies, args.seconds, 1, ready)
                attackers = spawn.Process(target=attack, args=order)
                attackers.start()
                ready.wait(60)
                uvloop.run(paced(api.url, requests, args.per_s, 8, args.seconds, beside))
                most = max(most, rig.resident_mb(api))
                attackers.join()
        finally:
            rig.stop(api)
    if set(alone.statuses) | set(beside.statuses) != {202}:
        raise SystemExit(f"not every normal request was accepted: {alone.statuses} {beside.statuses}")
    p99, p99_beside = rig.quantile_ms(alone.seconds, 0.99), rig.quantile_ms(beside.seconds, 0.99)
    facts = {
        "p50_ms": rig.quantile_ms(alone.seconds, 0.5), "p99_ms": p99,
        "p50_ms_beside": rig.quantile_ms(beside.seconds, 0.5), "p99_ms_beside": p99_beside,
        "ratio": round(p99_beside / p99, 2), "requests": len(beside.seconds), "slow": args.slow, "bodies": args.bodies,
        "rss_mb": before, "rss_mb_most": most,
    }  # fmt: skip
    rows = [
        ("p50 / p99 alone", f"{facts['p50_ms']} / {p99} ms"),
        ("p50 / p99 beside the attack", f"{facts['p50_ms_beside']} / {p99_beside} ms"),
        ("ratio of the two p99", f"{facts['ratio']}"),
        ("normal requests beside it, all accepted", f"{len(beside.seconds)}"),
        ("API resident memory before, and at most at a part's end", f"{before} / {most} MB"),
    ]
    rig.report("hostile", rows, facts)


async def _tenants(bench: rig.Rig) -> list[rig.BenchApp]:
    async with bench.database() as db:
        return await bench.tenants(db, 2, 1, 16)


if __name__ == "__main__":
    main()
