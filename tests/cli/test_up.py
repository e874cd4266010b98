"""`limner up`: one line when ready, one instance a home, everything restarted, everything stopped."""

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from limner.db.embedded import EmbeddedPostgres
from limner.egress import probe
from limner.egress.loopback import LoopbackClient
from tests.cli.conftest import Limner, StartUp, Up, alive, environment, gone, until
from tests.running import free_port

FIELDS = {"base_url", "home", "org", "app", "api_key", "end_user", "pid", "receiver"}


async def _paint(facts: dict[str, Any], within_s: float = 30) -> None:
    """A job from request to result."""
    headers = {"X-API-Key": facts["api_key"], "X-User-ID": facts["end_user"]}
    async with LoopbackClient(facts["base_url"], headers) as api:
        body = {"model": "local/canvas", "input": {"prompt": "a hill", "size": 512}}
        job = await api.call("POST", "/api/v1/generate", body)
        deadline = time.monotonic() + within_s
        while (state := await api.call("GET", f"/api/v1/jobs/{job['job_id']}"))["status"] != "succeeded":
            assert time.monotonic() < deadline, state
            time.sleep(0.05)


def _serves(facts: dict[str, Any]) -> bool:
    health = probe.health(facts["base_url"])
    return health is not None and health["status"] == "ok"


async def test_one_line_one_instance_and_a_clean_end(start: StartUp, home: Path, tmp_path: Path) -> None:
    up = start()
    facts = up.ready()
    assert facts.keys() == FIELDS
    assert facts["pid"] == up.popen.pid
    assert facts["home"] == str(home)
    await _paint(facts)
    assert stat.S_IMODE((home / "up.json").stat().st_mode) == 0o600

    second = Limner(home, tmp_path).process("up", "--json", "--port", "0")
    assert second.code == 2
    assert second.out == ""
    assert f"process {up.popen.pid}" in second.err
    assert _serves(facts)

    started = up.everything()
    assert len(started) >= 3
    assert up.stop() == 0
    assert gone(started)
    assert up.popen.stdout is not None
    assert up.popen.stdout.read() == ""  # one line and nothing else
    assert up.said() == ""
    assert not (home / "up.json").exists()


async def test_what_dies_is_started_again(start: StartUp) -> None:
    up = start()
    facts = up.ready()

    api = up.child("api")
    api.kill()
    await _paint(facts)  # waits in the queue of the port, which outlives the process
    assert up.child("api").pid != api.pid

    worker = up.child("worker")
    worker.kill()
    await _paint(facts)
    assert up.child("worker").pid != worker.pid

    postmaster = EmbeddedPostgres(Path(facts["home"])).postmaster_pid()
    assert postmaster is not None
    os.kill(postmaster, signal.SIGKILL)
    until(lambda: EmbeddedPostgres(Path(facts["home"])).postmaster_pid() not in {None, postmaster})
    until(lambda: _serves(facts))
    await _paint(facts)
    assert "the database ended" in up.said()
    assert up.stop() == 0


async def test_a_database_that_waits_for_its_sessions_before_it_stops_is_started_again(start: StartUp) -> None:
    """SIGTERM to PostgreSQL: it lets nobody in any more, and would wait for limner's pools for ever."""
    up = start()
    facts = up.ready()
    server = EmbeddedPostgres(Path(facts["home"]))
    postmaster = server.postmaster_pid()
    assert postmaster is not None

    os.kill(postmaster, signal.SIGTERM)

    until(lambda: server.postmaster_pid() not in {None, postmaster})
    until(lambda: _serves(facts))
    await _paint(facts)
    assert up.said().count("told the database to stop") == 1
    assert up.stop() == 0


async def test_a_killed_supervisor_leaves_nothing_and_the_next_takes_over(start: StartUp) -> None:
    port = free_port()
    up = start("--port", str(port))
    facts = up.ready()
    started = up.everything()
    up.popen.kill()
    up.popen.wait()

    next_up = start("--port", str(port))  # at once, on the same port
    again = next_up.ready()

    assert again["api_key"] == facts["api_key"]
    assert gone([process for process in started if "postgres" not in _name(process)])
    await _paint(again)
    assert next_up.stop() == 0
    assert gone(started)


def test_a_killed_supervisors_processes_end_by_themselves(start: StartUp) -> None:
    up = start()
    up.ready()
    started = up.everything()

    up.popen.kill()

    assert gone(started)


def test_a_taken_port_is_said_before_anything_starts(start: StartUp, home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        began = time.monotonic()
        said = Limner(home, tmp_path).process("up", "--json", "--port", str(port))

    assert said.code == 2
    assert f"port {port}" in said.err
    assert "--port" in said.err
    assert time.monotonic() - began < 10
    assert EmbeddedPostgres(home).postmaster_pid() is None


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    postmaster = EmbeddedPostgres(tmp_path / "home").postmaster_pid()
    assert postmaster is None


@pytest.mark.parametrize("after_s", [0.6, 1.5, 3.0])
def test_a_signal_during_the_start_stops_it(fresh: Path, after_s: float) -> None:
    up = Up(fresh)
    time.sleep(after_s)
    started = [process for process in psutil.Process(up.popen.pid).children(recursive=True) if alive(process)]

    code = up.stop()

    assert code in {0, 143}, up.said()  # 143: before it had read its own command line
    assert gone(started)
    assert "Traceback" not in up.said()
    assert up.popen.stdout is not None
    up.popen.stdout.close()


def test_a_second_signal_does_not_wait(start: StartUp) -> None:
    up = start()
    up.ready()
    worker = up.worker()
    started = up.everything()
    worker.suspend()  # it cannot end by itself now

    up.popen.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    up.popen.send_signal(signal.SIGTERM)

    assert up.popen.wait(8) == 0
    assert gone(started)


def test_an_api_process_alone_stops_its_database_too(start: StartUp, home: Path) -> None:
    start().stop()  # the home is made
    port = free_port()
    env = environment(home, LIMNER_PORT=str(port))
    with (home.parent / "api.log").open("wb") as log:
        api = psutil.Popen([*_limner(), "api"], env=env, stdout=log, stderr=log)
    until(lambda: probe.health(f"http://127.0.0.1:{port}") is not None)

    api.send_signal(signal.SIGTERM)

    assert api.wait(20) == 0
    assert EmbeddedPostgres(home).postmaster_pid() is None


def _limner() -> list[str]:
    return [sys.executable, "-m", "limner"]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
