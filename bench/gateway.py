"""What a gateway adds to a call: limner (key, hold, settlement and usage row), a bare proxy, Portkey and LiteLLM, one after the other
on one core, before the same model server, in one run.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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


def measure(url: str, headers: list[dict[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    """One server's figures; callers in turn."""
    load = itertools.cycle([request(url, one) for one in headers])
    uvloop.run(rig.hammer(url, load, 4, 2))
    alone, statuses_alone, _ = uvloop.run(rig.hammer(url, load, 1, args.seconds / 2))
    many, statuses, per_s = uvloop.run(rig.hammer(url, load, args.clients, args.seconds))
    if set(statuses) | set(statuses_alone) != {200}:
        raise SystemExit(f"not every call was answered: {statuses_alone} {statuses}")
    return {"per_s": round(per_s), "p50_ms": rig.quantile_ms(alone, 0.5), "p99_ms": rig.quantile_ms(alone, 0.99),
            "p50_ms_many": rig.quantile_ms(many, 0.5), "p99_ms_many": rig.quantile_ms(many, 0.99)}  # fmt: skip


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


def limner(upstream: str, args: argparse.Namespace) -> dict[str, Any]:
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
            facts = measure(
                api.url, [{"Authorization": f"Bearer {app.key}", "X-User-ID": user} for user in app.users], args
            )
            facts["rss_mb"] = rig.resident_mb(api)
        finally:
            rig.stop(api)
        with rig.superuser(bench) as conn:
            row = conn.execute(
                "SELECT count(*), count(*) FILTER (WHERE state = 'succeeded') FROM limner.job"
            ).fetchone()
            held = conn.execute("SELECT coalesce(sum(held_mc), 0) FROM limner.wallet").fetchone()
        assert row is not None
        assert held is not None
        facts |= {"jobs": row[0], "settled": row[1], "still_held_mc": int(held[0])}
        return facts


def portkey(upstream: str, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
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
        facts = measure(f"http://127.0.0.1:{port}", [headers], args)
        return facts | {"rss_mb": round(psutil.Process(popen.pid).memory_info().rss / 2**20)}


def litellm(upstream: str, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
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
        facts = measure(f"http://127.0.0.1:{port}", [{"Authorization": "Bearer k"}], args)
        return facts | {"rss_mb": round(psutil.Process(popen.pid).memory_info().rss / 2**20)}


def bare(upstream: str, args: argparse.Namespace) -> dict[str, Any]:
    """The same web framework and HTTP client with nothing in between."""
    port = free_port()
    with process([sys.executable, "-m", "bench.bare_proxy", "--port", str(port), "--upstream", upstream], port, 0):
        return measure(f"http://127.0.0.1:{port}", [{}], args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", default="limner,bare,portkey,litellm")
    args = parser.parse_args()
    chosen = args.only.split(",")
    scratch = Path(tempfile.mkdtemp(prefix="limner-peers-"))
    port = free_port()
    upstream = f"http://127.0.0.1:{port}"
    facts: dict[str, Any] = {}
    try:
        with process([sys.executable, "-m", "bench.upstream", "--port", str(port)], port, 1):
            rig.pin(os.getpid(), 1)
            facts["direct"] = measure(upstream, [{}], args)
            if "limner" in chosen:
                facts["limner"] = limner(upstream, args)
            if "bare" in chosen:
                facts["bare"] = bare(upstream, args)
            if "portkey" in chosen:
                facts["portkey"] = portkey(upstream, args, scratch)
            if "litellm" in chosen:
                facts["litellm"] = litellm(upstream, args, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows = [
        (f"{name}: calls/s at {args.clients} clients; p50 / p99 at one; resident",
         f"{one['per_s']:,}; {one['p50_ms']} / {one['p99_ms']} ms; {one.get('rss_mb', '-')} MB")
        for name, one in facts.items()
    ]  # fmt: skip
    rig.report("gateway", rows, facts)


if __name__ == "__main__":
    main()
