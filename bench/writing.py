"""The writing check: how long 1,000 words take in a child that is warm, through the pool as the API asks it, and over HTTP.

Harper remembers pieces of sentences. So it is timed three times: with the clean corpus, which a warm child has read before; as an
editor asks, with the text of a moment ago and one sentence changed; and with texts that are new to it in every sentence (each made
of the corpus, with a number of its own in every sentence).
"""

import argparse
import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

import orjson
import psutil

from bench import rig
from limner.hub.providers.local.writing.report import CHECK, MAX_CHARS
from limner.kit.cpu import CpuPool

CLEAN = Path(__file__).parents[1] / "fixtures" / "writing" / "clean"
WORDS = 1000
WARM_UP = 10


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


def corpus(words: int) -> list[str]:
    """The clean corpus as it stands, cut into texts of so many words."""
    prose = " ".join(path.read_text() for path in sorted(CLEAN.glob("*.txt"))).split()
    return [" ".join(prose[start : start + words]) for start in range(0, len(prose) - words + 1, words)]


async def timed_edits(ask: Callable[[str], Awaitable[object]], source: Iterator[str], rounds: int) -> list[float]:
    """Seconds of each check of one text that changes in a sentence from one to the next."""
    sentences = re.split(r"(?<=[.?!])\s+", next(source))
    await ask(" ".join(sentences))
    seconds = []
    for number in range(rounds):
        sentences[number % len(sentences)] = f"Then {number} of them went home before the others had their tea."
        began = time.perf_counter()
        await ask(" ".join(sentences))
        seconds.append(time.perf_counter() - began)
    return seconds


async def timed(ask: Callable[[str], Awaitable[object]], source: Iterator[str], rounds: int) -> list[float]:
    """Seconds of each check after some to warm up."""
    seconds = []
    for number in range(rounds + WARM_UP):
        text = next(source)
        began = time.perf_counter()
        await ask(text)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    return seconds


@dataclass(frozen=True)
class InThePool:
    """Seconds: of the first check, of each of the corpus's texts once it was read, of each of 1,000 new words and its processor
    time, of each after an edit and its processor time, of one of the longest text.

    `resident_mb`: of the child after all of them.
    """

    first_s: float
    corpus_s: list[float]
    warm_s: list[float]
    cpu_s: float
    edited_s: list[float]
    edited_cpu_s: float
    longest_s: float
    resident_mb: int


def busy_s(pool: CpuPool) -> float:
    """Processor time that the pool's children have used."""
    times = [psutil.Process(pid).cpu_times() for pid in pool.pids()]
    return float(sum(t.user + t.system for t in times))


async def in_the_pool(rounds: int) -> InThePool:
    pool = CpuPool(1, 2 << 30, 60)
    source = texts(WORDS, 1)
    began = time.perf_counter()
    await pool.run(CHECK, next(source))
    cold_s = time.perf_counter() - began
    again = await timed(lambda text: pool.run(CHECK, text), cycle(corpus(WORDS)), rounds)
    busy = busy_s(pool)
    warm = await timed(lambda text: pool.run(CHECK, text), source, rounds)
    cpu_s = (busy_s(pool) - busy) / (rounds + WARM_UP)
    busy = busy_s(pool)
    edited = await timed_edits(lambda text: pool.run(CHECK, text), source, rounds)
    edited_cpu_s = (busy_s(pool) - busy) / (rounds + 1)
    longest = next(texts(MAX_CHARS // 5, 2))[:MAX_CHARS]
    began = time.perf_counter()
    await pool.run(CHECK, longest)
    longest_s = time.perf_counter() - began
    resident = sum(psutil.Process(pid).memory_info().rss for pid in pool.pids())
    await pool.aclose()
    return InThePool(cold_s, again, warm, cpu_s, edited, edited_cpu_s, longest_s, round(resident / 2**20))


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
    pool = asyncio.run(in_the_pool(args.rounds))
    with rig.rig() as bench:
        api = bench.api(core=None)
        try:
            http = asyncio.run(over_http(bench, api.url, args.rounds // 2))
        finally:
            rig.stop(api)
    facts = {
        "corpus_p50_ms": rig.quantile_ms(pool.corpus_s, 0.5),
        "corpus_p99_ms": rig.quantile_ms(pool.corpus_s, 0.99),
        "pool_p50_ms": rig.quantile_ms(pool.warm_s, 0.5),
        "pool_p99_ms": rig.quantile_ms(pool.warm_s, 0.99),
        "pool_cpu_ms": round(pool.cpu_s * 1000, 1),
        "edited_p50_ms": rig.quantile_ms(pool.edited_s, 0.5),
        "edited_p99_ms": rig.quantile_ms(pool.edited_s, 0.99),
        "edited_cpu_ms": round(pool.edited_cpu_s * 1000, 1),
        "http_p50_ms": rig.quantile_ms(http, 0.5),
        "http_p99_ms": rig.quantile_ms(http, 0.99),
        "first_ms": round(pool.first_s * 1000),
        "longest_ms": round(pool.longest_s * 1000),
        "resident_mb": pool.resident_mb,
        "words": WORDS,
    }
    rows = [
        (
            "1,000 words of the corpus, read before, p50 / p99",
            f"{facts['corpus_p50_ms']:.1f} / {facts['corpus_p99_ms']:.1f} ms",
        ),
        ("1,000 words, one sentence new, p50 / p99", f"{facts['edited_p50_ms']:.1f} / {facts['edited_p99_ms']:.1f} ms"),
        ("processor time of it", f"{facts['edited_cpu_ms']:.1f} ms"),
        ("1,000 words, all new, p50 / p99", f"{facts['pool_p50_ms']:.1f} / {facts['pool_p99_ms']:.1f} ms"),
        ("processor time of it", f"{facts['pool_cpu_ms']:.1f} ms"),
        ("the same over HTTP", f"{facts['http_p50_ms']:.1f} / {facts['http_p99_ms']:.1f} ms"),
        ("the first one, with the dictionary", f"{facts['first_ms']:,} ms"),
        (f"{MAX_CHARS:,} characters", f"{facts['longest_ms']:,} ms"),
        ("the child's resident memory afterwards", f"{facts['resident_mb']} MB"),
    ]
    rig.report("writing", rows, facts)


if __name__ == "__main__":
    main()
