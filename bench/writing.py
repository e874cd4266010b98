"""The writing check: how long 1,000 words take in a child that is warm, through the pool as the API asks it, and over HTTP.

Every text is another one, made of the clean corpus with a number of its own in each sentence: Harper remembers sentences.
"""

import argparse
import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path

import orjson

from bench import rig
from limner.hub.providers.local.writing.report import CHECK, MAX_CHARS
from limner.kit.cpu import CpuPool

CLEAN = Path(__file__).parents[1] / "fixtures" / "writing" / "clean"
WORDS = 1000


def texts(words: int, seed: int) -> Iterator[str]:
    """Texts of so many words (a few more), none like another."""
    prose = " ".join(path.read_text() for path in sorted(CLEAN.glob("*.txt")))
    sentences = [s for s in re.split(r"(?<=[.?!])\s+", prose) if len(s.split()) > 4]
    rng = random.Random(seed)
    numbers = count(1000)
    while True:
        chosen: list[str] = []
        so_far = 0
        while so_far < words:
            sentence = f"In {next(numbers)} they said this: {rng.choice(sentences)}"
            chosen.append(sentence)
            so_far += len(sentence.split())
        yield " ".join(chosen)


async def timed(ask: Callable[[str], Awaitable[object]], source: Iterator[str], rounds: int) -> list[float]:
    """Seconds of each check after ten to warm up."""
    seconds = []
    for number in range(rounds + 10):
        text = next(source)
        began = time.perf_counter()
        await ask(text)
        if number >= 10:
            seconds.append(time.perf_counter() - began)
    return seconds


async def in_the_pool(rounds: int) -> tuple[float, list[float], float]:
    """(the first check, each warm one of 1,000 words, one of the longest text) in seconds."""
    pool = CpuPool(1, 2 << 30, 60)
    source = texts(WORDS, 1)
    began = time.perf_counter()
    await pool.run(CHECK, next(source))
    cold_s = time.perf_counter() - began
    warm = await timed(lambda text: pool.run(CHECK, text), source, rounds)
    longest = next(texts(MAX_CHARS // 5, 2))[:MAX_CHARS]
    began = time.perf_counter()
    await pool.run(CHECK, longest)
    longest_s = time.perf_counter() - began
    await pool.aclose()
    return cold_s, warm, longest_s


async def over_http(bench: rig.Rig, url: str, rounds: int) -> list[float]:
    """Seconds of each warm check over one connection."""
    async with bench.database() as db:
        [app] = await bench.tenants(db, 1, 1, 1)
    seconds = []
    source = texts(WORDS, 3)
    for number in range(rounds + 5):
        request = rig.post(url, "/api/v1/check", app.key, "user-0", orjson.dumps({"text": next(source)}))
        latencies, statuses, _ = await rig.hammer(url, iter([request]), 1, 0)
        if set(statuses) != {200}:
            raise SystemExit(f"answered {statuses}")
        if number >= 5:
            seconds += latencies
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    cold_s, warm, longest_s = asyncio.run(in_the_pool(args.rounds))
    with rig.rig() as bench:
        api = bench.api(core=None)
        try:
            http = asyncio.run(over_http(bench, api.url, args.rounds // 2))
        finally:
            rig.stop(api)
    facts = {
        "pool_p50_ms": rig.quantile_ms(warm, 0.5),
        "pool_p99_ms": rig.quantile_ms(warm, 0.99),
        "http_p50_ms": rig.quantile_ms(http, 0.5),
        "http_p99_ms": rig.quantile_ms(http, 0.99),
        "first_ms": round(cold_s * 1000),
        "longest_ms": round(longest_s * 1000),
        "words": WORDS,
    }
    rows = [
        ("1,000 words, warm, p50 / p99", f"{facts['pool_p50_ms']:.1f} / {facts['pool_p99_ms']:.1f} ms"),
        ("the same over HTTP", f"{facts['http_p50_ms']:.1f} / {facts['http_p99_ms']:.1f} ms"),
        ("the first one, with the dictionary", f"{facts['first_ms']:,} ms"),
        (f"{MAX_CHARS:,} characters", f"{facts['longest_ms']:,} ms"),
    ]
    rig.report("writing", rows, facts)


if __name__ == "__main__":
    main()
