"""Webhooks by command: added, turned, sent again, removed; and a receiver on this machine that verifies."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from limner.kit import signing
from limner.kit.signing import Keys
from tests.cli.conftest import Limner, environment, until
from tests.conftest import Server
from tests.running import free_port

URL = "https://hooks.example.com/limner"


@pytest.fixture
def org(limner: Limner) -> str:
    slug = f"w-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    limner.ok("app", "create", "web", "--org", slug)
    return slug


def test_a_webhook_by_command_from_its_making_to_its_end(limner: Limner, org: str) -> None:
    made = limner.ok("webhooks", "add", URL, "--org", org, "--app", "web", "--event", "job.failed", "--ed25519")
    one = (made["id"], "--org", org)

    listed = limner.ok("webhooks", "list", "--org", org, "--app", "web")["webhooks"]
    assert [(w["kind"], w["url"], w["event_types"]) for w in listed] == [
        ("app", None, []),
        ("extra", URL, ["job.failed"]),
    ]
    assert limner.ok("webhooks", "secret", *one)["secret"] == made["secret"]
    rotated = limner.ok("webhooks", "rotate", *one)
    assert limner.ok("webhooks", "secret", *one)["previous"] == made["secret"] != rotated["secret"]
    assert limner.ok("webhooks", "disable", *one)["disabled_reason"] == "by_hand"
    assert limner.ok("webhooks", "enable", *one)["enabled"] is True
    assert limner.ok("webhooks", "deliveries", *one)["deliveries"] == []
    assert limner.ok("webhooks", "remove", *one) == {"id": made["id"], "removed": True}
    assert limner("webhooks", "remove", *one).code == 1
    said = limner("webhooks", "remove", listed[0]["id"], "--org", org)
    assert (said.code, "cannot be removed" in said.err) == (1, True)
    actions = [row["action"] for row in limner.ok("org", "audit", org)["entries"]]
    assert {
        "webhook.added",
        "webhook.rotated",
        "webhook.secret_read",
        "webhook.disabled",
        "webhook.enabled",
        "webhook.removed",
    } <= set(actions)


def test_the_secret_is_the_one_line_of_output(limner: Limner, org: str) -> None:
    made = limner("webhooks", "add", URL, "--org", org, "--app", "web")

    assert made.out.startswith("whsec_")
    assert made.out.count("\n") == 1
    assert made.out.strip() not in limner("webhooks", "list", "--org", org, "--app", "web").out


@pytest.mark.parametrize("url", ["http://hooks.example.com/", "https://127.0.0.1/", "https://localhost/"])
def test_ps3_a_url_that_is_not_allowed_is_not_added(limner: Limner, org: str, url: str) -> None:
    said = limner("webhooks", "add", url, "--org", org, "--app", "web")

    assert said.code == 1
    assert len(limner.ok("webhooks", "list", "--org", org, "--app", "web")["webhooks"]) == 1


def test_wrong_usage_is_told(limner: Limner, org: str) -> None:
    assert limner("webhooks", "add", URL, "--org", org, "--app", "web", "--event", "job.dreamt").code == 2
    assert limner("webhooks", "redeliver", "--org", org).code == 2
    assert limner("webhooks", "redeliver", "--webhook", str(uuid4()), "--org", org).code == 2
    assert limner("webhooks", "redeliver", str(uuid4()), "--org", org).code == 1


def test_a_span_is_sent_again_by_command(limner: Limner, org: str) -> None:
    made = limner.ok("webhooks", "add", URL, "--org", org, "--app", "web")
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()

    assert limner.ok("webhooks", "redeliver", "--webhook", made["id"], "--since", since, "--org", org) == {"queued": 0}
    limner.ok("webhooks", "disable", made["id"], "--org", org)
    long_ago = limner("webhooks", "redeliver", "--webhook", made["id"], "--since", "2020-01-01", "--org", org)
    assert long_ago.code == 2
    assert "within the last 30 days" in long_ago.err
    said = limner("webhooks", "redeliver", "--webhook", made["id"], "--since", since, "--org", org)
    assert (said.code, "turned off" in said.err) == (1, True)


def test_listening_says_which_setting_is_missing(limner: Limner, org: str) -> None:
    said = limner("webhooks", "listen", "--org", org, "--app", "web", "--port", "8123")

    assert said.code == 1
    assert "LIMNER_EGRESS_ALLOW_ORIGINS=http://127.0.0.1:8123" in said.err


class Listener:
    """`limner webhooks listen` in a process of its own."""

    def __init__(self, home: Path, org: str) -> None:
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.out = home / "log" / f"listen-{self.port}.out"
        with self.out.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "limner", "webhooks", "listen", "--org", org, "--app", "web", "--port", str(self.port), "--json"],
                env=environment(home, LIMNER_EGRESS_ALLOW_ORIGINS=self.origin), cwd=home, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        until(lambda: "listening on" in self.said() or self.popen.poll() is not None)
        assert self.popen.poll() is None, self.said()

    def said(self) -> str:
        return self.out.read_text()

    def deliveries(self) -> list[Any]:
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def stop(self) -> None:
        if self.popen.poll() is None:
            os.kill(self.popen.pid, signal.SIGTERM)
        self.popen.wait(30)


@pytest.fixture
def listener(server: Server, limner: Limner, org: str) -> Iterator[Listener]:
    listener = Listener(server.home, org)
    yield listener
    listener.stop()


async def test_a_listener_verifies_what_comes_and_takes_its_webhook_away_with_it(
    limner: Limner, org: str, listener: Listener
) -> None:
    [own, made] = limner.ok("webhooks", "list", "--org", org, "--app", "web")["webhooks"]
    assert made["url"] == f"{listener.origin}/"
    body = b'{"type": "job.completed", "job_id": "j1"}'
    statuses = []
    async with aiohttp.ClientSession() as http:
        for webhook in (made, own, None):
            text = limner.ok("webhooks", "secret", webhook["id"], "--org", org)["secret"] if webhook else None
            secret = base64.b64decode(text.removeprefix("whsec_")) if text else b"wrong" * 8
            headers = signing.headers(Keys((secret,)), uuid4(), int(datetime.now(UTC).timestamp()), body)
            async with http.post(f"{listener.origin}/", data=body, headers=headers) as answer:
                statuses.append(answer.status)

    told = listener.deliveries()
    assert statuses == [200, 200, 400]
    assert [(d["type"], d["job_id"], d["verified"]) for d in told] == [
        ("job.completed", "j1", True), ("job.completed", "j1", True), ("job.completed", "j1", False),
    ]  # fmt: skip
    listener.stop()
    assert len(limner.ok("webhooks", "list", "--org", org, "--app", "web")["webhooks"]) == 1
