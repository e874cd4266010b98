"""limner's own processes, started as an operator would, over the test run's database."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

START_S = 30.0
PATIENCE_S = 120.0
"""For what is slow on a machine that is busy with other things, and that nothing else could bring about meanwhile."""
QUICK = {"LIMNER_LEASE_S": "1", "LIMNER_RETRY_BACKOFF_S": "0.1", "LIMNER_SHUTDOWN_S": "12", "LIMNER_KEY_CACHE_S": "1"}
# tests send more than people do: what a limit does is tested where it is set
QUICK |= {"LIMNER_USER_JOBS_PER_MIN": "0", "LIMNER_APP_JOBS_PER_MIN": "0", "LIMNER_READS_PER_MIN": "0"}
QUICK |= {"LIMNER_CHECKS_PER_MIN": "0", "LIMNER_BREAKER_FAILURES": "0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """`limner <command>` in a process of its own; its output goes to a file. `program`: how Python finds limner."""

    program: tuple[str, ...] = ("-m", "limner")

    def __init__(self, home: Path, command: list[str], env: Mapping[str, str]) -> None:
        self.log = home / "log" / f"test-{'-'.join(command)}-{time.monotonic_ns()}.log"
        self.log.parent.mkdir(exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, *self.program, *command],
                env=clean | {"LIMNER_HOME": str(home)} | QUICK | dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str) -> None:
        deadline = time.monotonic() + START_S
        while text not in self.output():
            assert self.popen.poll() is None, self.output()
            assert time.monotonic() < deadline, f"no {text!r} in {self.output()}"
            time.sleep(0.02)

    def send(self, signum: signal.Signals) -> None:
        self.popen.send_signal(signum)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self, timeout_s: float = 30) -> int:
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.popen.wait(timeout_s)


def start_worker(home: Path, **env: str) -> Process:
    """A worker that is ready to claim. What it holds is not taken from it because the machine is busy for a second."""
    process = Process(home, ["worker"], {"LIMNER_LEASE_S": "10"} | env)
    process.wait_for_output("worker.ready")
    return process


class Api(Process):
    """An API process that answers; `url` is its origin."""

    def __init__(self, home: Path, **env: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(home, ["api"], {"LIMNER_PORT": str(port), **env})
        deadline = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    return
            except OSError:
                assert self.popen.poll() is None, self.output()
                assert time.monotonic() < deadline, self.output()
                time.sleep(0.02)


class Answer:
    """A response, read whole."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, json: Any) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.json = json


class Client:
    """Speaks to one API process as one app, for one end user unless told otherwise."""

    def __init__(self, http: aiohttp.ClientSession, url: str, api_key: str | None, user: str | None = "ann") -> None:
        self.http = http
        self.url = url
        self.api_key = api_key
        self.user = user

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = self._key(path)
        if self.user is not None:
            sent["X-User-ID"] = self.user
        if data is not None:
            sent["Content-Type"] = "application/json"
        sent |= dict(headers or {})
        url = path if path.startswith("http") else self.url + path
        async with self.http.request(method, url, json=body, data=data, headers=sent, allow_redirects=False) as got:
            raw = await got.read()
            parsed = await got.json(content_type=None) if "json" in got.headers.get("content-type", "") else None
            return Answer(got.status, got.headers.copy(), raw, parsed)

    def _key(self, path: str) -> dict[str, str]:
        if not self.api_key:
            return {}
        return {"Authorization": f"Bearer {self.api_key}"} if path.startswith("/v1/") else {"X-API-Key": self.api_key}

    async def generate(self, model: str = "local/describe", **fields: Any) -> Answer:
        return await self.call("POST", "/api/v1/generate", {"model": model, **fields})

    async def follow(
        self, job_id: str, last_id: str | None = None
    ) -> AsyncGenerator[tuple[str | None, str, Any], None]:
        """(id, event, data) of a job's stream as they arrive, by the rules of WHATWG HTML 9.2.6; a comment as (None, ":", text)."""
        sent = {"X-API-Key": self.api_key or "", "X-User-ID": self.user or ""}
        if last_id is not None:
            sent["Last-Event-ID"] = last_id
        url = f"{self.url}/api/v1/jobs/{job_id}/events"
        async with self.http.get(url, headers=sent, timeout=aiohttp.ClientTimeout(total=None)) as got:
            assert (got.status, got.headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), got.status
            fields: dict[str, str] = {}
            async for raw in got.content:
                line = raw.decode().rstrip("\n")
                if line.startswith(":"):
                    yield None, ":", line[1:].strip()
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                else:
                    if "data" in fields:
                        yield fields.get("id"), fields["event"], json.loads(fields["data"])
                    fields = {}

    async def finished(self, job_id: str, timeout_s: float = 30) -> Any:
        """The job's body once it is closed."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = await self.call("GET", f"/api/v1/jobs/{job_id}")
            assert answer.status == 200, answer.body
            if answer.json["status"] in {"succeeded", "failed", "cancelled"}:
                return answer.json
            assert time.monotonic() < deadline, answer.json
            await asyncio.sleep(0.05)
