"""Door 1: only where the operator said, with the key of that origin and no other, and what is known when it fails."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limner.egress.answers import (
    AnswerTooLarge,
    ConnectFailed,
    ConnectionLost,
    DestinationNotAllowed,
    EgressError,
    TimedOut,
)
from limner.egress.credentials import KeyForm
from limner.egress.fixed import FixedDoor
from tests.egress import certificates
from tests.egress.keys import KEY, with_locals
from tests.emulators import rogue
from tests.emulators.rogue import Request, Rogue, plain

KIB = 1024


async def test_a_call_carries_the_key_of_its_origin(provider: Rogue, door: FixedDoor) -> None:
    answer = await door.request(
        "POST",
        provider.origin + "/v1/images?n=1",
        headers={"Idempotency-Key": "k"},
        body=b"{}",
        timeout_s=5,
        max_bytes=KIB,
    )

    assert (answer.status, answer.body, answer.headers["x-request-id"]) == (200, b'{"ok": true}', "r1")
    sent = provider.requests[0]
    assert (sent.method, sent.path, sent.body) == ("POST", "/v1/images?n=1", b"{}")
    assert sent.header("authorization") == f"Bearer {KEY}"
    assert (sent.header("idempotency-key"), sent.header("accept-encoding")) == ("k", "identity")


async def test_a_key_goes_in_the_form_that_its_server_wants(provider: Rogue, door: FixedDoor) -> None:
    form = KeyForm("x-api-key")
    await door.request("GET", provider.origin, timeout_s=5, max_bytes=KIB, auth=form)
    async with door.stream("POST", provider.origin, timeout_s=5, idle_s=5, auth=form):
        pass
    with pytest.raises(ValueError, match="x-api-key is not the caller's"):
        await door.request("GET", provider.origin, headers={"X-Api-Key": "x"}, timeout_s=5, max_bytes=KIB, auth=form)

    assert [(sent.header("x-api-key"), sent.header("authorization")) for sent in provider.requests] == [(KEY, None)] * 2


async def test_another_origin_gets_no_key(provider: Rogue) -> None:
    async with rogue.running(plain(200)) as other:
        door = FixedDoor([], [provider.origin, other.origin], {provider.origin: KEY})
        await door.request("GET", other.origin, timeout_s=5, max_bytes=KIB)
        await door.aclose()

    assert other.requests[0].header("authorization") is None
    assert KEY not in str(other.requests)


async def test_a_redirect_is_an_answer_and_the_key_goes_nowhere(provider: Rogue) -> None:
    async with rogue.running(plain(307, b"", f"Location: {provider.origin}/")) as server:
        door = FixedDoor([], [provider.origin, server.origin], {server.origin: KEY})
        answer = await door.request("POST", server.origin, body=b"{}", timeout_s=5, max_bytes=KIB)
        await door.aclose()

    assert answer.status == 307
    assert provider.connections == 0


@pytest.mark.parametrize(
    "url",
    ["http://api.openai.com/", "https://api.openai.com:8443/", "https://api.openai.com.evil.example/", "https://openai.com/",
     "https://evil-api.openai.com/", "https://x.api.openai.com/", "https://api.openai.com@evil.example/",
     "https://evil.example/?api.openai.com", "https://evil.example#@api.openai.com/", "https://api.openai.com\\@evil.example/",
     "https://127.0.0.1/", "http://127.0.0.1:{port}1/", "https://127.0.0.1:{port}/", "http://127.0.0.2:{port}/",
     "http://localhost:{port}/", "http://127.1:{port}/", "http://user@127.0.0.1:{port}/", "file:///etc/passwd", ""],
)  # fmt: skip
async def test_ps3_only_what_the_operator_named_is_asked(provider: Rogue, url: str) -> None:
    door = FixedDoor(["api.openai.com"], [provider.origin], {provider.origin: KEY})

    with pytest.raises(DestinationNotAllowed) as refused:
        await door.request("GET", url.format(port=provider.port), timeout_s=5, max_bytes=KIB)

    assert not refused.value.sent
    assert provider.connections == 0


@pytest.mark.parametrize("name", ["Authorization", "AUTHORIZATION", "Proxy-Authorization", "Cookie", "Host"])
async def test_credentials_of_a_caller_are_refused(provider: Rogue, door: FixedDoor, name: str) -> None:
    with pytest.raises(ValueError, match="not the caller's"):
        await door.request("GET", provider.origin, headers={name: "mine"}, timeout_s=5, max_bytes=KIB)

    assert provider.connections == 0


async def test_calls_to_one_origin_share_a_connection(provider: Rogue, door: FixedDoor) -> None:
    for _ in range(5):
        await door.request("POST", provider.origin, body=b"{}", timeout_s=5, max_bytes=KIB)

    assert (len(provider.requests), provider.connections) == (5, 1)


async def test_cookies_and_proxies_are_ignored(
    provider: Rogue, door: FixedDoor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    provider.script = rogue.always(plain(200, b"", "Set-Cookie: a=b"))
    async with rogue.running(plain(200)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
        for _ in range(2):
            await door.request("GET", provider.origin, timeout_s=5, max_bytes=KIB)

    assert proxy.connections == 0
    assert [request.header("cookie") for request in provider.requests] == [None, None]
    assert {request.header("authorization") for request in provider.requests} == {f"Bearer {KEY}"}


async def _hang_up(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _silent(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _half(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("script", "raised"),
    [
        (_hang_up, ConnectionLost),
        (_silent, TimedOut),
        (_half, TimedOut),
        (rogue.always(b"what?\r\n\r\n"), ConnectionLost),
        (rogue.always(plain(200, b"x" * (KIB + 1))), AnswerTooLarge),
        (rogue.always(plain(200, b"", "X-A: " + "x" * 9 * KIB)), AnswerTooLarge),
        (rogue.always(plain(401, b"x" * (KIB + 1))), AnswerTooLarge),
    ],
    ids=["hangs up", "silent", "half", "no HTTP", "too large", "long header", "a large refusal"],
)
async def test_what_fails_after_sending_says_so_and_never_holds_the_key(
    provider: Rogue, door: FixedDoor, script: rogue.Script, raised: type[EgressError]
) -> None:
    provider.script = script

    with pytest.raises(raised) as failed:
        await door.request("POST", provider.origin, body=b"{}", timeout_s=0.5, max_bytes=KIB)

    assert failed.value.sent
    assert (failed.value.__cause__, failed.value.__context__) == (None, None)
    assert KEY not in with_locals(failed.value)
    assert KEY not in repr(door) + repr(vars(door))


async def test_what_fails_before_sending_says_so() -> None:
    async with rogue.running(plain(200)) as gone:
        pass
    door = FixedDoor([], [gone.origin], {gone.origin: KEY})

    with pytest.raises(ConnectFailed) as failed:
        await door.request("POST", gone.origin, body=b"{}", timeout_s=5, max_bytes=KIB)
    await door.aclose()

    assert not failed.value.sent


async def test_a_certificate_that_nobody_vouches_for_gets_no_request(tmp_path: Path) -> None:
    tls = certificates.server(certificates.make(tmp_path, "localhost"))
    async with rogue.running(plain(200), tls=tls) as server:
        origin = f"https://localhost:{server.port}"
        door = FixedDoor([], [origin], {origin: KEY})
        with pytest.raises(ConnectFailed) as failed:
            await door.request("GET", origin, timeout_s=5, max_bytes=KIB)
        await door.aclose()

    assert not failed.value.sent
    assert server.requests == []


async def test_a_time_that_ends_while_connecting_is_before_sending() -> None:
    """A listener whose queue is full and who accepts nobody."""
    code = "import socket; s = socket.create_server(('127.0.0.1', 0), backlog=0); print(s.getsockname()[1], flush=True); input()"
    full = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert full.stdout is not None
    port = int(full.stdout.readline())
    waiting = [asyncio.create_task(asyncio.open_connection("127.0.0.1", port)) for _ in range(4)]
    await asyncio.sleep(0.2)
    door = FixedDoor([], [f"http://127.0.0.1:{port}"], {})
    try:
        with pytest.raises(TimedOut) as late:
            await door.request("POST", f"http://127.0.0.1:{port}/", body=b"{}", timeout_s=0.5, max_bytes=KIB)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await door.aclose()
        full.kill()
        full.communicate()

    assert not late.value.sent


async def test_a_door_can_be_made_outside_of_a_loop_and_closed_unused() -> None:
    await FixedDoor(["api.openai.com"], [], {}).aclose()


@pytest.mark.parametrize(
    ("hosts", "plain_origins", "keys"),
    [
        (["https://api.openai.com"], [], {}),
        (["api.openai.com/v1"], [], {}),
        ([], ["127.0.0.1:8000"], {}),
        ([], [], {"api.openai.com": KEY}),
        ([], [], {"https://api.openai.com": KEY + "\r\nX: y"}),
        ([], [], {"https://api.openai.com": ""}),
    ],
)
def test_what_cannot_work_is_refused_at_once_without_the_key(
    hosts: list[str], plain_origins: list[str], keys: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"host|origin|key") as refused:
        FixedDoor(hosts, plain_origins, keys)

    assert KEY not in str(refused.value)


def test_a_large_body_arrives_whole_and_does_not_warn() -> None:
    """In a process of its own: aiohttp warns of bodies that would hold up the event loop."""
    code = (
        "import asyncio\n"
        "from limner.egress.fixed import FixedDoor\n"
        "from tests.emulators import rogue\n"
        "async def main():\n"
        "    async with rogue.running(rogue.plain(200)) as server:\n"
        "        door = FixedDoor([], [server.origin], {})\n"
        "        await door.request('POST', server.origin, body=b'x' * 5_000_000, timeout_s=30, max_bytes=10)\n"
        "        await door.aclose()\n"
        "        assert server.requests[0].body == b'x' * 5_000_000\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )

    assert (done.returncode, done.stderr) == (0, "")
