"""Smaller copies: how fast one is made, beside Pillow's thumbnail in the same run, and how many made ones an API core serves.

Both make a WebP 960 pixels wide of the same 12-megapixel JPEG, at the same quality and effort, in this process and one thread.
"""

import argparse
import hashlib
import io
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np
import pyvips
import uvloop
from PIL import Image

from bench import rig
from limner.media import images
from tests.running import Client

WIDTH, HEIGHT, COPY = 4000, 3000, 960
QUALITY, EFFORT = 80, 4
"""As limner.media.images.shrink makes them."""
UPLOADS = "/api/v1/uploads"


def photograph() -> bytes:
    """A JPEG with a photograph's mix of smooth and rough: the same bytes each time."""
    rng = np.random.default_rng(12)
    small = rng.integers(0, 256, (HEIGHT // 50, WIDTH // 50, 3), np.uint8)
    smooth = pyvips.Image.new_from_array(small, interpretation="srgb").resize(50, kernel="cubic")
    grain = pyvips.Image.gaussnoise(WIDTH, HEIGHT, mean=0, sigma=6, seed=12)
    picture = (smooth + grain).cast("uchar").copy(interpretation="srgb")
    return bytes(picture.jpegsave_buffer(Q=88))


def by_pillow(data: bytes) -> bytes:
    """The same copy as Pillow's documentation makes it; `thumbnail` has the JPEG decoder shrink first, as libvips does."""
    picture: Any = Image.open(io.BytesIO(data))
    picture.thumbnail((COPY, images.WEBP_MAX_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=EFFORT)
    return out.getvalue()


def by_limner(data: bytes) -> bytes:
    return images.shrink(data, COPY, "image/webp")


def seconds_each(data: bytes, rounds: int) -> tuple[list[float], list[float]]:
    """In turns, so that both meet the same moments of the machine; the first of each is not counted."""
    ways: tuple[Callable[[bytes], bytes], ...] = (by_limner, by_pillow)
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for way, seconds in zip(ways, took, strict=True):
            began = time.perf_counter()
            way(data)
            if number:
                seconds.append(time.perf_counter() - began)
    return took


async def ready_url(bench: rig.Rig, url: str, data: bytes) -> str:
    """The URL of an uploaded picture."""
    async with bench.database() as db:
        [app] = await bench.tenants(db, 1, 1, 1)
    async with aiohttp.ClientSession() as session:
        client = Client(session, url, app.key, app.users[0])
        body = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "kind": "image"}
        made = (await client.call("POST", UPLOADS, body)).json
        async with session.put(made["upload"]["url"], data=data, headers=made["upload"]["headers"]) as put:
            assert put.status == 200
        done = await client.call("POST", f"{UPLOADS}/{made['id']}/complete")
        assert done.status == 200, done.body
        copy = f"{done.json['url']}&w={COPY}&f=webp"
        assert (await client.call("GET", copy)).status == 200
        return copy


async def serve(bench: rig.Rig, data: bytes, args: argparse.Namespace) -> tuple[float, float, list[float]]:
    """(made copies served a second by one core, seconds of its time that each took, seconds that each was waited for)."""
    api = bench.api(core=0)
    rig.pin_others(bench.embedded, 1)
    try:
        copy = await ready_url(bench, api.url, data)
        host = api.url.removeprefix("http://")
        request = f"GET {copy.removeprefix(api.url)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        await rig.hammer(api.url, itertools.cycle([request]), args.clients, 1)
        before = rig.cpu_seconds(api)
        latencies, statuses, rate = await rig.hammer(api.url, itertools.cycle([request]), args.clients, args.seconds)
        assert set(statuses) == {200}, statuses
        return rate, (rig.cpu_seconds(api) - before) / len(latencies), latencies
    finally:
        rig.stop(api)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    os.environ["VIPS_CONCURRENCY"] = "1"
    data = photograph()
    ours, theirs = seconds_each(data, args.rounds)
    copy, other = by_limner(data), by_pillow(data)
    ratio = statistics.median(theirs) / statistics.median(ours)
    with rig.rig() as bench:
        rate, cpu_s, latencies = uvloop.run(serve(bench, data, args))
    rows = [
        (f"a copy, {COPY} px WebP of 12 MP", f"{statistics.median(ours) * 1000:.0f} ms, {len(copy):,} bytes"),
        ("Pillow's thumbnail", f"{statistics.median(theirs) * 1000:.0f} ms, {len(other):,} bytes"),
        ("ratio", f"{ratio:.2f}"),
        (f"made copies served a second, one core, {args.clients} clients", f"{rate:,.0f}"),
        ("processor time of one, and what fits into a second", f"{cpu_s * 1e6:.0f} µs, {1 / cpu_s:,.0f}"),
        ("p50 / p99", f"{rig.quantile_ms(latencies, 0.5)} / {rig.quantile_ms(latencies, 0.99)} ms"),
    ]
    facts = {
        "copy_ms": statistics.median(ours) * 1000,
        "pillow_ms": statistics.median(theirs) * 1000,
        "ratio": ratio,
        "hits_per_s": rate,
        "hits_per_cpu_s": 1 / cpu_s,
    }
    rig.report("images", rows, facts)


if __name__ == "__main__":
    main()
