"""What a gateway adds to a call: limner (key, hold, settlement and usage row), a bare proxy, Portkey and LiteLLM, in turn on one core,
before the same model server, in one run. Whoever is not asked just then stands idle beside.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench import rig
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from tests.running import free_port

PORTKEY = "@portkey-ai/gateway@1.15.2"
LITELLM = "litellm[proxy]==1.109.1"
LOOSE = ("certifi>=2025", "litellm-proxy-extras>=0.4")
"""What it wants newer than the index may have: root certificates, and the schema of a database that is not used here."""
MODEL = "bench"
WORDS = "Describe a harbour at sunset in one sentence, as a caption for a photograph."
USERS = 200
USER_RATE, APP_RATE = "6000", "1000000"
"""Calls a minute: the limits are enforced, and never reached."""


def request(url: str, headers: dict[str, str], *, stream: bool = False) -> bytes:
    """A prepared call."""
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 100}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(asked).encode()
    lines = {
        "Host": url.removeprefix("http://"),
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **headers,
    }
    return (
        "POST /v1/chat/completions HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    ).encode() + body


@contextlib.contextmanager
def process(
    command: list[str], port: int, core: int, cwd: Path | None = None, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens on `port`, on one core."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  (the server's, until it ends)
    popen = subprocess.Popen(command, cwd=cwd, env=os.environ | env, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if popen.poll() is not None or time.monotonic() > until:
                log.seek(0)
                raise SystemExit(f"{command[0]} does not listen: {log.read()[-2000:].decode(errors='replace')}")
            time.sleep(0.1)
        for one in (psutil.Process(popen.pid), *psutil.Process(popen.pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # some start helpers that end at once
                rig.pin(one.pid, core)
        yield popen
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in psutil.Process(popen.pid).children(recursive=True):
                one.kill()
        popen.kill()
        popen.wait()


@dataclass
class Target:
    """A gateway that answers; `facts`: its figures, and what it tells of itself at its end."""

    url: str
    headers: list[dict[str, str]]
    facts: dict[str, Any] = field(default_factory=dict)
    took: dict[int, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    """Seconds a call took, by the number of clients, turn by turn."""
    rates: list[float] = field(default_factory=list)
    """Calls a second with many clients, turn by turn."""

    def hammer(self, clients: int, seconds: float) -> float:
        """Calls a second; callers in turn."""
        load = itertools.cycle([request(self.url, one) for one in self.headers])
        took, statuses, per_s = uvloop.run(rig.hammer(self.url, load, clients, seconds))
        if set(statuses) != {200}:
            raise SystemExit(f"not every call was answered: {self.url} {statuses}")
        self.took[clients].append(took)
        return per_s

    def quantile_ms(self, clients: int, share: float) -> float:
        return rig.quantile_ms([took for turn in self.took[clients] for took in turn], share)

    def medians_ms(self) -> list[float]:
        """At one client, turn by turn."""
        return [rig.quantile_ms(turn, 0.5) for turn in self.took[1]]


def measure(targets: dict[str, Target], args: argparse.Namespace) -> None:
    """In turn, some seconds each at one client and at many, so that the machine's slow seconds are everybody's."""
    for target in targets.values():
        target.hammer(4, 2)
    names = list(targets)
    for turn in range(args.turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            targets[name].hammer(1, args.seconds)
            targets[name].rates.append(targets[name].hammer(args.clients, args.seconds))
    direct = targets["direct"].medians_ms()
    for target in targets.values():
        target.facts |= {
            "per_s": round(statistics.median(target.rates)),
            "p50_ms": target.quantile_ms(1, 0.5), "p99_ms": target.quantile_ms(1, 0.99),
            "p50_ms_many": target.quantile_ms(args.clients, 0.5), "p99_ms_many": target.quantile_ms(args.clients, 0.99),
            "added_ms": [round(own - none, 2) for own, none in zip(target.medians_ms(), direct, strict=True)],
            "per_s_turns": [round(rate) for rate in target.rates],
        }  # fmt: skip


async def sell(bench: rig.Rig, upstream: str) -> rig.BenchApp:
    """A funded tenant with the model, by tokens, at the upstream."""
    async with bench.database() as db:
        (app,) = await bench.tenants(db, 1, 1, USERS)
        async with db.tenant_tx(app.org_id, "limner_operator") as tx:
            await catalog.put_provider(
                tx, {"name": "upstream", "display_name": "U", "adapter": "openai", "base_url": upstream + "/v1"}
            )
            await catalog.put_model(tx, {
                "name": MODEL, "display_name": "Bench", "kind": "text.generate", "input_schema": offers.SCHEMAS["text.generate"],
                "price_mc": 0, "price_unit": "tokens", "input_price_mc": 1_000_000, "output_price_mc": 2_000_000,
            })  # fmt: skip
            await catalog.put_route(tx, MODEL, "upstream", provider_model=MODEL)
    return app


@contextlib.contextmanager
def limner(upstream: str, _: Path) -> Iterator[Target]:
    with rig.rig() as bench:
        app = asyncio.run(sell(bench, upstream))
        rig.pin_others(bench.embedded, core=1)
        api = bench.api(
            0,
            LIMNER_EGRESS_PLAIN_ORIGINS=upstream,
            LIMNER_USER_JOBS_PER_MIN=USER_RATE,
            LIMNER_APP_JOBS_PER_MIN=APP_RATE,
        )
        try:
            callers = [{"Authorization": f"Bearer {app.key}", "X-User-ID": user} for user in app.users]
            yield (target := Target(api.url, callers))
            target.facts["rss_mb"] = rig.resident_mb(api)
        finally:
            rig.stop(api)
        with rig.superuser(bench) as conn:
            row = conn.execute(
                "SELECT count(*), count(*) FILTER (WHERE state = 'succeeded') FROM limner.job"
            ).fetchone()
            held = conn.execute("SELECT coalesce(sum(held_mc), 0) FROM limner.wallet").fetchone()
        assert row is not None
        assert held is not None
        target.facts |= {"jobs": row[0], "settled": row[1], "still_held_mc": int(held[0])}


@contextlib.contextmanager
def portkey(upstream: str, scratch: Path) -> Iterator[Target]:
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(scratch), PORTKEY],
        check=True,
        capture_output=True,
    )
    port = free_port()
    start = scratch / "node_modules/@portkey-ai/gateway/build/start-server.js"
    with process(["node", str(start), f"--port={port}", "--headless"], port, 0) as popen:
        headers = {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": upstream + "/v1",
            "Authorization": "Bearer k",
        }
        yield (target := Target(f"http://127.0.0.1:{port}", [headers]))
        target.facts["rss_mb"] = round(psutil.Process(popen.pid).memory_info().rss / 2**20)


@contextlib.contextmanager
def litellm(upstream: str, scratch: Path) -> Iterator[Target]:
    venv = scratch / "litellm"
    uv = shutil.which("uv", path=f"{sys.prefix}/tools:{os.environ['PATH']}") or "uv"
    loose = scratch / "loose.txt"
    loose.write_text("\n".join(LOOSE))
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(venv)], check=True)
    at = ["--python", str(venv / "bin/python"), "--override", str(loose), "--system-certs"]
    subprocess.run([uv, "pip", "install", "-q", *at, LITELLM], check=True)
    port, config = free_port(), scratch / "litellm.yaml"
    parameters = {"model": f"openai/{MODEL}", "api_base": upstream + "/v1", "api_key": "k"}
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": parameters}]}))
    command = [str(venv / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    with process(command, port, 0, scratch, **settings) as popen:
        yield (target := Target(f"http://127.0.0.1:{port}", [{"Authorization": "Bearer k"}]))
        target.facts["rss_mb"] = round(psutil.Process(popen.pid).memory_info().rss / 2**20)


@contextlib.contextmanager
def bare(upstream: str, _: Path) -> Iterator[Target]:
    """The same web framework and HTTP client with nothing in between."""
    port = free_port()
    with process([sys.executable, "-m", "bench.bare_proxy", "--port", str(port), "--upstream", upstream], port, 0):
        yield Target(f"http://127.0.0.1:{port}", [{}])


GATEWAYS = {"limner": limner, "bare": bare, "portkey": portkey, "litellm": litellm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6, help="at one client and at many, each")
    parser.add_argument("--seconds", type=float, default=3, help="a turn")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", default=",".join(GATEWAYS))
    args = parser.parse_args()
    chosen = args.only.split(",")
    scratch = Path(tempfile.mkdtemp(prefix="limner-peers-"))
    port = free_port()
    upstream = f"http://127.0.0.1:{port}"
    targets = {"direct": Target(upstream, [{}])}
    try:
        with process([sys.executable, "-m", "bench.upstream", "--port", str(port)], port, 1):
            rig.pin(os.getpid(), 1)
            with contextlib.ExitStack() as stack:
                for name in chosen:
                    targets[name] = stack.enter_context(GATEWAYS[name](upstream, scratch))
                measure(targets, args)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    facts = {name: target.facts for name, target in targets.items()}
    rows = [
        (f"{name}: calls/s at {args.clients} clients; p50 / p99 at one; resident",
         f"{one['per_s']:,}; {one['p50_ms']} / {one['p99_ms']} ms; {one.get('rss_mb', '-')} MB")
        for name, one in facts.items()
    ]  # fmt: skip
    for name in chosen:
        added = facts[name]["added_ms"]
        figure = f"{statistics.median(added):.2f} ({min(added)} to {max(added)}) ms"
        rows.append((f"{name}: added at one client, p50 of the turns: median (least to most)", figure))
    for name in ("portkey", "litellm") if "limner" in chosen else ():
        if name not in chosen:
            continue
        times = [own / other for own, other in zip(targets["limner"].rates, targets[name].rates, strict=True)]
        figure = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        rows.append(
            (f"limner's calls/s by {name}'s at {args.clients} clients, of the turns: median (least to most)", figure)
        )
    rig.report("gateway", rows, facts)


if __name__ == "__main__":
    main()
