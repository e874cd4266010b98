"""The outermost layer: errors in each surface's format, bounds on what arrives, and a reference that works offline."""

import asyncio
import contextlib
import re
from html.parser import HTMLParser
from typing import Any
from uuid import UUID

import orjson
import psycopg
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from limner.db.pools import DatabaseUnavailable
from limner.web.bodies import BodyBounds, BodyMemory
from limner.web.middleware import Edge
from tests.running import Api, Client
from tests.web import document, raw


@pytest.fixture
def open_client(client: Client) -> Client:
    """Without a key."""
    client.api_key = client.user = None
    return client


# Errors


@pytest.mark.parametrize(
    "path", ["/api/v1/nothing", "/api/v1", "/api/", "/api/v1/generate/", "/api/v1/jobs/", "/api//v1/jobs"]
)
async def test_an_unknown_path_of_the_api_answers_404_in_its_format(open_client: Client, path: str) -> None:
    answer = await open_client.call("GET", path)

    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error", "code", "request_id"}
    assert answer.json["code"] == "not_found"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/", "/v1/chat/completions/", "/v1/chat", "/v1//models"])
async def test_an_unknown_path_of_openais_interface_answers_404_in_its_format(open_client: Client, path: str) -> None:
    answer = await open_client.call("GET", path)

    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error", "request_id"}
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert (answer.json["error"]["type"], answer.json["error"]["code"]) == ("invalid_request_error", "not_found")


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/docs/static/nothing.js", "/docs/static/../../../pyproject.toml", "/redoc", "/admin"]
)
async def test_an_unknown_path_elsewhere_answers_404_as_a_problem(api: Api, path: str) -> None:
    reply = await raw.exchange(api.url, raw.request("GET", path))

    assert reply.status == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "code", "request_id"} == set(reply.json)
    assert (reply.json["status"], reply.json["code"]) == (404, "not_found")


async def test_a_wrong_method_answers_405_with_what_is_allowed(open_client: Client) -> None:
    for template, operations in document.document()["paths"].items():
        path = re.sub(r"\{\w+\}", "x", template)
        allowed = {method.upper() for method in operations}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - allowed:
            answer = await open_client.call(method, path)
            if template in {"/api/v1/users/{external_id}/tokens", "/api/v1/users/tokens/batch"} and method == "GET":
                assert answer.status == 401  # the user named x/tokens, or tokens/batch
                continue
            told = answer.json["error"] if path.startswith("/v1/") else answer.json
            assert (answer.status, told["code"]) == (405, "method_not_allowed"), (method, path)
            assert set(answer.headers["allow"].split(", ")) >= allowed
            kind = "application/json" if path.startswith(("/api/", "/v1/")) else "application/problem+json"
            assert answer.headers["content-type"] == kind


async def test_a_path_with_a_line_break_is_nobodys(api: Api) -> None:
    for path in ("/api/v1/users/ann%0a", "/healthz%0a", "/api/v1/users/a%0d%0aX-Evil:%201", "/api/v1/generate%0a"):
        reply = await raw.exchange(api.url, raw.request("GET", path))
        assert reply.status == 404
        assert "x-evil" not in reply.headers


async def test_every_answer_carries_an_id_of_its_own_and_the_security_headers(open_client: Client) -> None:
    paths = ("/healthz", "/docs", "/openapi.json", "/metrics", "/api/v1/jobs", "/nothing", "/media/x", "/api/health")
    seen = set()
    for path in paths:
        answer = await open_client.call("GET", path, headers={"X-Request-ID": "mine"})
        seen.add(UUID(answer.headers["x-request-id"]))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
    assert len(seen) == len(paths)


async def edge_answers(behind: Any, path: str = "/api/v1/jobs") -> tuple[int, dict[str, str], Any]:
    """What the Edge makes of an application that behaves like this."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise behind

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await Edge(app, 10, {}, {}, BodyBounds(10, 10, BodyMemory(10)))(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, orjson.loads(sent[1]["body"])


async def test_a_crash_answers_500_and_tells_nothing_of_it() -> None:
    for error in (
        RuntimeError("secret of the house"),
        psycopg.IntegrityError("key lmn_live_x violates"),
        RecursionError(),
    ):
        status, headers, body = await edge_answers(error)
        assert (status, body["code"]) == (500, "internal_error")
        assert set(body) == {"error", "code", "request_id"}
        assert body["error"] == "Something went wrong on our side."
        assert body["request_id"] == headers["x-request-id"]


async def test_a_database_that_is_away_answers_503_and_when_to_come_back() -> None:
    cut_off = psycopg.errors.IdleInTransactionSessionTimeout("host=/secret")
    for error in (DatabaseUnavailable("host=/secret"), psycopg.OperationalError("password=hunter2"), cut_off):
        for path in ("/api/v1/jobs", "/metrics"):
            status, headers, body = await edge_answers(error, path)
            assert (status, body["code"]) == (503, "unavailable")
            assert int(headers["retry-after"]) >= 1
            assert not re.search("secret|hunter2", str(body))


async def test_a_client_that_leaves_is_no_crash_of_ours() -> None:
    status, _, body = await edge_answers(ClientDisconnect())

    assert (status, body["code"]) == (400, "client_disconnected")


# What arrives


async def test_a_url_of_a_great_many_parameters_is_refused_before_any_is_read(open_client: Client) -> None:
    """A hundred get as far as to be asked for a key."""
    few, many = [await open_client.call("GET", "/api/v1/jobs?" + "&".join(["a=1"] * count)) for count in (100, 101)]

    assert few.status == 401
    assert (many.status, many.json["details"]) == (400, {"": ["more than 100 parameters in the URL"]})


SMUGGLED = [
    b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n",
    b"Content-Length: -1\r\n", b"Content-Length: 0x5\r\n", b"Content-Length: 99999999999999999999999\r\n",
    b"Content-Length: " + b"9" * 5000 + b"\r\n", b"Content-Length : 5\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"X-Bad\r\n", b"X: a\0b\r\n", b"X: a\r b\r\n", b"\x01: x\r\n",
]  # fmt: skip


@pytest.mark.parametrize("header", SMUGGLED)
async def test_a_head_that_two_servers_could_read_differently_is_refused(api: Api, header: bytes) -> None:
    """Request smuggling (RFC 9112, 6.3): the second request in the body must never be answered."""
    inner = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
    request = b"POST /api/v1/generate HTTP/1.1\r\nHost: h\r\n" + header + b"\r\n0\r\n\r\n" + inner

    answers = await everything(api, request)

    assert re.match(rb"HTTP/1.1 (400|413) ", answers)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"ok\n" not in answers


async def everything(api: Api, request: bytes) -> bytes:
    """All that the server sends until it closes."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def test_headers_without_end_are_refused(api: Api) -> None:
    for start in (b"GET /healthz HTTP/1.1\r\nX-User-ID: ", b"GET /", b"GET /healthz HTTP/1.1\r\n"):
        line = b"a" * 65536 if start[-1:] != b"\n" else b"x: y\r\n" * 10_000
        host, port = api.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(start)
        sent = 0
        try:
            async with asyncio.timeout(10):
                while sent < 50_000_000:
                    writer.write(line)
                    sent += len(line)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except (ConnectionError, TimeoutError):
            pass
        got = b""
        with contextlib.suppress(ConnectionError):
            got = await asyncio.wait_for(reader.read(), 5)
        assert sent < 5_000_000
        assert got == b"" or re.match(rb"HTTP/1.1 (431|400) ", got)
        writer.close()


async def test_headers_of_a_reasonable_size_are_taken(api: Api) -> None:
    head = {f"X-Padding-{n}": "p" * 4000 for n in range(12)}

    assert (await raw.exchange(api.url, raw.request("GET", "/healthz", head))).status == 200


# Host names


HOSTILE = [
    {"Host": "evil.test"}, {"Host": "evil.test:80"}, {"Host": "evil.test/?x="}, {"Host": "a@evil.test"}, {"Host": "/api/v1/jobs?"},
    {"X-Forwarded-Host": "evil.test"}, {"X-Forwarded-Proto": "https"}, {"X-Forwarded-Port": "444"}, {"X-Forwarded-Prefix": "/evil"},
    {"Forwarded": "host=evil.test;proto=https"}, {"X-Original-URL": "/evil"}, {"X-Rewrite-URL": "/evil"}, {"X-Host": "evil.test"},
    {"X-Forwarded-For": "127.0.0.1"}, {"X-HTTP-Method-Override": "DELETE"}, {"X-Middleware-Subrequest": "1"},
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE, ids=[str(headers) for headers in HOSTILE])
async def test_ps9_no_header_moves_a_request_or_a_url(api: Api, hostile: dict[str, str]) -> None:
    plain = await raw.exchange(api.url, raw.request("GET", "/openapi.json"))
    for path in ("/openapi.json", "/docs", "/api/v1/jobs", "/healthz"):
        reply = await raw.exchange(api.url, raw.request("GET", path, hostile))
        expected = await raw.exchange(api.url, raw.request("GET", path))
        assert reply.status == expected.status
        assert b"evil" not in reply.body
        assert not [value for value in reply.headers.values() if "evil" in value]
    assert (await raw.exchange(api.url, raw.request("GET", "/openapi.json", hostile))).body == plain.body


async def test_ps9_an_absolute_target_is_read_by_its_path_alone(api: Api) -> None:
    reply = await raw.exchange(api.url, raw.request("GET", "http://evil.test/healthz"))

    assert (reply.status, reply.body) == (200, b"ok\n")


# Operations


async def test_health_is_told_in_each_format(open_client: Client) -> None:
    healthz = await open_client.call("GET", "/healthz")
    readyz = await open_client.call("GET", "/readyz")
    health = await open_client.call("GET", "/api/health")

    assert (healthz.status, healthz.body) == (200, b"ok\n")
    assert (readyz.status, readyz.body) == (200, b"ready\n")
    assert health.status == 200
    assert health.json == {"status": "ok", "database": True, "version": health.json["version"]}
    document.check("GET", "/api/health", 200, health.json)


async def test_metrics_count_requests_by_route_and_never_by_what_a_caller_wrote(open_client: Client) -> None:
    for path in ("/api/v1/jobs/canary-a", "/api/v1/users/canary-b", "/canary-c", "/media/canary-d"):
        await open_client.call("GET", path)
    await open_client.call("GET", "/healthz", headers={"X-API-Key": "canary-e"})

    text = (await open_client.call("GET", "/metrics")).body.decode()

    assert 'limner_requests_total{route="/api/v1/jobs/{job_id}",status="401"}' in text
    assert 'route="unmatched",status="404"' in text
    for name in (
        "limner_queue_depth",
        "limner_queue_deferred",
        "limner_queue_oldest_seconds",
        "limner_open_holds",
        "limner_invariant_violations",
    ):
        assert f"\n{name} " in text
    assert "canary" not in text


class References(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href"} and value]


async def test_the_reference_and_all_it_loads_come_from_this_server(open_client: Client) -> None:
    page = await open_client.call("GET", "/docs")
    references = References()
    references.feed(page.body.decode())

    assert page.status == 200
    assert len(references.found) >= 3
    assert "://" not in page.body.decode()
    assert '"validatorUrl": null' in page.body.decode()
    assert "'/openapi.json'" in page.body.decode()
    for path in references.found:
        assert path.startswith("/docs/static/")
        asset = await open_client.call("GET", path)
        assert asset.status == 200
        assert len(asset.body) > 100
        if path.endswith(".css"):
            assert not re.search(rb"url\([\"']?(https?:)?//", asset.body)
            assert b"@import" not in asset.body
