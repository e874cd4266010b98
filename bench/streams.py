"""Jobs followed live: from the end of a job to its event at the client, and what thousands of open streams cost one API process."""

import argparse
import asyncio
import statistics
import time
from datetime import datetime
from typing import Any

import aiohttp
import orjson
import psutil
import uvloop

from bench import lifecycle, rig
from tests.running import Api

SETTLE_S = 3.0
AT_ONCE = 50


async def order(http: aiohttp.ClientSession, url: str, app: rig.BenchApp, model: str, **fields: Any) -> str:
    body = {"model": model, "input": {}, **fields}
    headers = {"X-API-Key": app.key, "X-User-ID": app.users[0]}
    async with http.post(f"{url}/api/v1/generate", json=body, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["job_id"])


async def lag_s(http: aiohttp.ClientSession, url: str, app: rig.BenchApp) -> float:
    """Order a job and follow it: seconds from its finishing statement to the event here. Both clocks are this machine's."""
    job_id = await order(http, url, app, lifecycle.MODEL)
    async with http.get(f"{url}/api/v1/jobs/{job_id}/events", headers={"X-API-Key": app.key}) as stream:
        name = ""
        async for line in stream.content:
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            elif line.startswith(b"data: ") and name == "job.completed":
                came = time.time()
                return came - datetime.fromisoformat(orjson.loads(line[6:])["timestamp"]).timestamp()
    raise AssertionError("the stream ended before the job did")


async def lags(http: aiohttp.ClientSession, url: str, apps: list[rig.BenchApp], count: int) -> list[float]:
    """One job at a time, each with a stream of its own."""
    return [await lag_s(http, url, apps[n % len(apps)]) for n in range(count)]


async def hold(
    url: str, app: rig.BenchApp, job_id: str, opened: asyncio.Semaphore
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream as a socket that nobody reads: the load generator must not be what is measured."""
    host, port = url.removeprefix("http://").split(":")
    async with opened:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**12)
        request = f"GET /api/v1/jobs/{job_id}/events HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {app.key}\r\n\r\n"
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
    return reader, writer


async def measure(api: Api, apps: list[rig.BenchApp], jobs: int, streams: int) -> dict[str, float]:
    process = psutil.Process(api.popen.pid)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await lags(http, api.url, apps, 20)
        idle = await lags(http, api.url, apps, jobs)
        before = process.memory_info().rss / 2**20
        later = datetime.fromtimestamp(time.time() + 86_400).astimezone().isoformat(timespec="seconds")
        waiting = [await order(http, api.url, app, lifecycle.MODEL, run_at=later) for app in apps]
        opened = asyncio.Semaphore(AT_ONCE)
        held = await asyncio.gather(
            *(hold(api.url, apps[n % len(apps)], waiting[n % len(apps)], opened) for n in range(streams))
        )
        await asyncio.sleep(SETTLE_S)
        spent = process.cpu_times().user + process.cpu_times().system
        await asyncio.sleep(SETTLE_S)
        quiet = (process.cpu_times().user + process.cpu_times().system - spent) / SETTLE_S
        among = await lags(http, api.url, apps, jobs)
        after = process.memory_info().rss / 2**20
        for _, writer in held:
            writer.close()
    return {
        "p50_ms": statistics.median(idle) * 1000, "p95_ms": statistics.quantiles(idle, n=20)[-1] * 1000,
        "among_p50_ms": statistics.median(among) * 1000, "among_p95_ms": statistics.quantiles(among, n=20)[-1] * 1000,
        "rss_mb": after, "rss_before_mb": before, "quiet_cpu": quiet,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--streams", type=int, default=2000)
    args = parser.parse_args()
    with rig.rig() as bench:

        async def tenants() -> list[rig.BenchApp]:
            async with bench.database() as db:
                return await bench.tenants(db, 4, 1, 2)

        apps = asyncio.run(tenants())
        for app in apps:
            asyncio.run(lifecycle.sell(bench, app))
        api = bench.api(core=0, LIMNER_MAX_STREAMS=str(args.streams + 100))
        try:
            with lifecycle.worker(bench, delay_s=0.05):
                facts = uvloop.run(measure(api, apps, args.jobs, args.streams))
        finally:
            api.stop()
    rounded = {name: round(value, 3 if name == "quiet_cpu" else 1) for name, value in facts.items()}
    rig.report("streams", [
        ("finish → event at the client, idle: p50 / p95", f"{rounded['p50_ms']} / {rounded['p95_ms']} ms"),
        (f"the same with {args.streams:,} other streams open", f"{rounded['among_p50_ms']} / {rounded['among_p95_ms']} ms"),
        ("the API process with them / without, resident", f"{rounded['rss_mb']} / {rounded['rss_before_mb']} MB"),
        ("its share of a core while nothing happens", f"{rounded['quiet_cpu']}"),
    ], rounded | {"streams": args.streams, "jobs": args.jobs})  # fmt: skip


if __name__ == "__main__":
    main()
