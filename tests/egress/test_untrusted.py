"""Door 2 towards servers that misbehave, over real sockets. They listen on loopback, as exact origins that are excepted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from limner.egress import untrusted
from limner.egress.answers import (
    ConnectFailed,
    ConnectionLost,
    DestinationNotAllowed,
    EgressError,
)
from limner.egress.destinations import Destinations
from limner.egress.resolving import DnsResolver
from limner.egress.untrusted import UntrustedDoor
from tests.emulators import nameserver, rogue
from tests.emulators.rogue import Request, Rogue, plain

HEADERS = {"Content-Type": "application/json", "webhook-id": "msg_1"}
KIB = 1024


def door(*servers: Rogue) -> UntrustedDoor:
    return UntrustedDoor(Destinations([server.origin for server in servers], []))


@pytest_asyncio.fixture
async def fine() -> AsyncIterator[Rogue]:
    async with rogue.running(
        plain(200, b"fine", "Content-Type: text/plain", "X-A: 1", "X-A: 2", "Set-Cookie: a=b")
    ) as server:
        yield server


async def test_the_bytes_that_are_given_are_the_bytes_that_are_sent(fine: Rogue) -> None:
    body = b'{"type": "job.succeeded",  "n": 1.0}\n'

    answer = await door(fine).post(fine.origin + "/in?a=%41", headers=HEADERS, body=body)

    assert (answer.status, answer.body) == (200, b"fine")
    assert (answer.headers["content-type"], answer.headers["x-a"]) == ("text/plain", "1, 2")
    sent = fine.requests[0]
    assert (sent.method, sent.path, sent.body) == ("POST", "/in?a=%41", body)
    assert {name: value for name, value in sent.headers if name != "accept"} == {
        "host": fine.origin.removeprefix("http://"),
        "user-agent": "limner",
        "content-type": "application/json",
        "webhook-id": "msg_1",
        "accept-encoding": "identity",
        "content-length": str(len(body)),
        "connection": "close",
    }


async def test_each_request_has_a_connection_of_its_own_and_no_cookies(fine: Rogue) -> None:
    client = door(fine)

    for _ in range(3):
        await client.post(fine.origin, headers=HEADERS, body=b"{}")

    assert fine.connections == 3
    assert [request.header("cookie") for request in fine.requests] == [None] * 3


async def test_ps3_proxies_and_netrc_of_the_environment_are_ignored(
    fine: Rogue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with rogue.running(plain(200)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.origin)

        await door(fine).fetch(fine.origin, max_bytes=100)

        assert proxy.connections == 0
    assert fine.requests[0].header("authorization") is None


async def test_ps3_a_webhooks_redirect_is_an_answer_and_is_not_followed(fine: Rogue) -> None:
    async with rogue.running(plain(307, b"", f"Location: {fine.origin}/")) as server:
        answer = await door(server, fine).post(server.origin, headers=HEADERS, body=b"{}")

    assert (answer.status, answer.headers["location"]) == (307, fine.origin + "/")
    assert fine.connections == 0


async def test_an_import_follows_three_redirects_and_no_fourth() -> None:
    async def onwards(request: Request, writer: asyncio.StreamWriter) -> None:
        left = int(request.path[1:])
        writer.write(plain(302, b"x" * KIB, f"Location: /{left - 1}") if left else plain(200, b"here"))

    async with rogue.running(onwards) as server:
        answer = await door(server).fetch(server.origin + "/3", max_bytes=100)

        assert (answer.status, answer.body) == (200, b"here")
        with pytest.raises(DestinationNotAllowed):
            await door(server).fetch(server.origin + "/4", max_bytes=100)
        assert [request.path for request in server.requests] == ["/3", "/2", "/1", "/0", "/4", "/3", "/2", "/1"]


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:{port}/", "https://127.0.0.1/", "http://localhost:{port}/", "//127.0.0.1:{port}", "file:///etc/passwd",
     "https://user@hooks.example.com/", "http://127.1:{port}/", "\\\\127.0.0.1:{port}/", "https://h\u00f6\u200b.example.com"],
)  # fmt: skip
async def test_ps3_an_imports_redirect_is_held_to_every_rule(fine: Rogue, location: str) -> None:
    async with rogue.running(plain(302, b"", "Location: " + location.format(port=fine.port))) as server:
        with pytest.raises(DestinationNotAllowed):
            await door(server).fetch(server.origin, max_bytes=100)

    assert fine.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "http://hooks.example.com/",
        "https://hooks.example.com:6379/",
        "https://api.limner.example/",
        "https://u@hooks.example.com/",
    ],
)
async def test_ps3_a_redirect_against_the_rules_is_not_even_resolved(location: str) -> None:
    asked: list[str] = []

    class Resolver:
        async def resolve(self, name: str) -> list[str]:
            asked.append(name)
            return []

    async with rogue.running(plain(302, b"", f"Location: {location}")) as server:
        client = UntrustedDoor(Destinations([server.origin], ["api.limner.example"]), resolver=Resolver())
        with pytest.raises(DestinationNotAllowed):
            await client.fetch(server.origin, max_bytes=100)

    assert (len(server.requests), asked) == (1, [])


async def test_nobody_listens_where_a_redirect_leads() -> None:
    async with rogue.running(plain(200)) as gone:
        pass
    async with rogue.running(plain(302, b"", f"Location: {gone.origin}/")) as server:
        with pytest.raises(ConnectFailed):
            await door(server, gone).fetch(server.origin, max_bytes=100)


async def test_nobody_listens_and_nothing_was_sent() -> None:
    async with rogue.running(plain(200)) as server:
        pass

    with pytest.raises(ConnectFailed) as failed:
        await door(server).post(server.origin, headers=HEADERS, body=b"{}")

    assert (failed.value.code, failed.value.sent) == ("connect_failed", False)


async def test_ps3_refused_and_unknown_names_cannot_be_told_apart() -> None:
    names = {
        "inside.example.com": ["10.0.0.1"],
        "empty.example.com": [],
        "many.example.com": [f"8.8.8.{n}" for n in range(17)],
    }
    told = []
    async with nameserver.running(nameserver.table(names)) as server:
        client = UntrustedDoor(Destinations([], []), resolver=DnsResolver(["127.0.0.1"], server.port))
        for name in (*names, "nobody.example.com"):
            with pytest.raises(DestinationNotAllowed) as refused:
                await client.post(f"https://{name}/", headers=HEADERS, body=b"{}")
            told.append((refused.value.code, refused.value.sent, str(refused.value), refused.value.__cause__))

    assert set(told) == {("destination_not_allowed", False, "the destination is not allowed", None)}


async def test_a_resolver_that_never_answers_is_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        async def resolve(self, name: str) -> list[str]:
            await asyncio.sleep(3600)
            return []

    monkeypatch.setattr(untrusted, "RESOLVE_S", 0.1)

    with pytest.raises(DestinationNotAllowed):
        await UntrustedDoor(Destinations([], []), resolver=Never()).fetch("https://a.example.com/", max_bytes=1)


async def test_the_other_family_is_tried_where_nobody_listens_on_the_first() -> None:
    async with rogue.running(plain(200, b"six"), "::1") as server:
        names = nameserver.table({"both.example.com": ["127.0.0.2", "::1"]})
        async with nameserver.running(names) as resolver:
            origin = f"http://both.example.com:{server.port}"
            client = UntrustedDoor(Destinations([origin], []), resolver=DnsResolver(["127.0.0.1"], resolver.port))

            answer = await client.post(origin + "/", headers=HEADERS, body=b"{}")

    assert answer.body == b"six"
    assert [request.header("host") for request in server.requests] == [f"both.example.com:{server.port}"]


async def test_ps3_a_request_is_not_repeated_at_another_address_once_it_was_sent() -> None:
    async def hang_up(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with rogue.running(hang_up) as first, rogue.running(plain(200), "::1", first.port) as second:
        names = nameserver.table({"both.example.com": ["127.0.0.1", "::1"]})
        async with nameserver.running(names) as resolver:
            origin = f"http://both.example.com:{first.port}"
            client = UntrustedDoor(Destinations([origin], []), resolver=DnsResolver(["127.0.0.1"], resolver.port))

            with pytest.raises(ConnectionLost):
                await client.post(origin, headers=HEADERS, body=b"{}")

    assert (len(first.requests), second.connections) == (1, 0)


@pytest.mark.parametrize(
    "name",
    ["Authorization", "authorization", "Cookie", "Host", "Content-Length", "Transfer-Encoding", "Connection", "Accept-Encoding",
     "Proxy-Authorization", "Expect", "Upgrade"],
)  # fmt: skip
async def test_headers_that_are_not_the_callers_are_refused_before_anything_is_sent(fine: Rogue, name: str) -> None:
    with pytest.raises(ValueError, match="not the caller's") as refused:
        await door(fine).post(fine.origin, headers={name: "Bearer secret"}, body=b"{}")

    assert "secret" not in str(refused.value)
    assert fine.connections == 0


@pytest.mark.parametrize(
    "headers",
    [{"X-A": "a\r\nX-B: b"}, {"X-A": "a\nb"}, {"X-A": "a\x00"}, {"X-A\r\nX-B": "b"}, {"X A": "b"}, {"": "b"}, {"X-A": " a"},
     {"X-A": "ä"}, {"X-A": "a", "x-a": "b"}, {"X-A": "x" * 20_000}],
)  # fmt: skip
async def test_headers_that_could_end_a_line_are_refused(fine: Rogue, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        await door(fine).post(fine.origin, headers=headers, body=b"{}")

    assert fine.connections == 0


async def test_a_cancelled_request_leaves_no_connection_behind() -> None:
    async with rogue.running(b"") as server:
        task = asyncio.create_task(door(server).post(server.origin, headers=HEADERS, body=b"{}"))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.gone.wait(), 10)


async def test_errors_name_no_address() -> None:
    async with rogue.running(plain(200)) as server:
        pass

    with pytest.raises(EgressError) as failed:
        await door(server).fetch(server.origin, max_bytes=1)

    assert "127.0.0.1" not in str(failed.value)
    assert (failed.value.__cause__, failed.value.__context__) == (None, None)
