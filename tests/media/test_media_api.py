"""Signed URLs: whoever has one may read that object until it expires, and nothing else, ever."""

import time
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from limner.db.context import DatabaseClock
from limner.kit.crypto import RootKey
from limner.media.store import ObjectStore
from limner.media.urls import MediaUrls
from tests.conftest import Server
from tests.running import Api, Client
from tests.web import raw
from tests.web.pictures import png

PICTURE = png(3, 2)
DAY = 86_400


def signer(root: RootKey, url: str, life_s: int = DAY) -> MediaUrls:
    clock = DatabaseClock()
    clock.sync(time.time())
    return MediaUrls(root, clock, url, life_s)


@pytest.fixture
def urls(server: Server, api: Api) -> MediaUrls:
    return signer(server.root, api.url)


@pytest.fixture
def store(server: Server) -> ObjectStore:
    return ObjectStore(None, server.home)


@pytest.fixture
def anybody(client: Client) -> Client:
    client.api_key = client.user = None
    return client


@pytest.mark.parametrize(("name", "kind"), [("0.png", "image/png"), ("1.jpg", "image/jpeg"), ("2.webp", "image/webp")])
async def test_an_object_is_served_as_what_it_is_and_may_do_nothing_in_a_browser(
    anybody: Client, urls: MediaUrls, store: ObjectStore, name: str, kind: str
) -> None:
    await store.put(f"outputs/a/b/1/{name}", PICTURE, kind)
    url = urls.sign(f"outputs/a/b/1/{name}")

    got = await anybody.call("GET", url)
    head = await anybody.call("HEAD", url)

    assert (got.status, got.body) == (200, PICTURE)
    for answer in (got, head):
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-length"] == str(len(PICTURE))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        directives = dict(part.strip().partition("=")[::2] for part in answer.headers["cache-control"].split(","))
        assert {"private", "immutable"} <= set(directives)
        assert DAY - 60 <= int(directives["max-age"]) <= DAY + 3600
        assert "set-cookie" not in answer.headers
    assert (head.status, head.body) == (200, b"")


async def test_a_url_lives_at_least_a_day_and_is_the_same_within_the_hour(urls: MediaUrls) -> None:
    first, second = urls.sign("outputs/a/b/1/0.png"), urls.sign("outputs/a/b/1/0.png")
    expiry = int(parse_qs(urlsplit(first).query)["e"][0])

    assert first == second
    assert time.time() + DAY <= expiry <= time.time() + DAY + 3600


async def test_a_changed_url_answers_403_and_shows_nothing(
    anybody: Client, urls: MediaUrls, store: ObjectStore, server: Server, api: Api
) -> None:
    key, other = "outputs/a/b/1/0.png", "outputs/c/d/1/0.png"
    for name in (key, other):
        await store.put(name, PICTURE, "image/png")
    good = urls.sign(key)
    path, query = good.partition("?")[::2]
    e, s = (parse_qs(query)[name][0] for name in ("e", "s"))
    flipped = [f"{path}?e={e}&s={s[:at]}{'A' if s[at] != 'A' else 'B'}{s[at + 1 :]}" for at in range(len(s))]
    stranger = signer(RootKey(b"another installation's root key!"), api.url)
    changed = [
        *flipped, path, f"{path}?e={e}", f"{path}?s={s}", f"{path}?e=&s=", f"{path}?e={int(e) + 1}&s={s}",
        f"{path}?e={'9' * 13}&s={s}", f"{path}?e=-1&s={s}", f"{path}?e=%D9%A3&s={s}", f"{path}?e={e}%00&s={s}", f"{path}?e={e}.0&s={s}",
        f"{path}?e={e}&s={s}=", f"{path}?e={e}&s={s.lower()}", f"{path}?e={e}&s=%F0%9F%A6%8A", f"{path}?e={e}&s=", f"{path}?e={e}&s={s}{s}",
        good.replace("a/b", "c/d"), good.replace("/media/", "/media//"), good.replace("0.png", "0.PNG"),
        good.replace("/0.png", "/./0.png"), good.replace("0.png", "0.png/"), good.replace("0.png", "0.png%00"),
        stranger.sign(key), signer(server.root, api.url, -7200).sign(key), signer(server.root, api.url, -10 * DAY).sign(key),
    ]  # fmt: skip

    assert (await anybody.call("GET", good)).status == 200
    for url in changed:
        for method in ("GET", "HEAD"):
            reply = await raw.exchange(api.url, raw.request(method, url.removeprefix(api.url)))
            assert reply.status == 403, url
            assert PICTURE not in reply.body
            assert "etag" not in reply.headers
        assert reply.headers["content-type"] == "application/problem+json"


TRAVERSALS = [
    "../root.key", "outputs/../../root.key", "/etc/passwd", "//etc/passwd", "..\\root.key", "outputs/..%2f..%2froot.key",
    "outputs/%2e%2e/%2e%2e/root.key", "./../root.key", "outputs/a/b/1/0.png/../../../../../../root.key", "outputs/\0/0.png",
    "....//root.key", "file:///etc/passwd", "..;/root.key", "outputs/a/b/1/..", "", ".", "..", "~/.ssh/id_rsa", "outputs",
    "\u2025/root.key", "outputs/a/b/1/0.png\n", " ", "%00", "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("key", TRAVERSALS)
async def test_no_path_reaches_another_file_even_with_a_valid_signature(
    api: Api, urls: MediaUrls, store: ObjectStore, server: Server, key: str
) -> None:
    """limner never signs such keys; should it ever, the store still stays in its folder."""
    (server.home / "secret.png").write_bytes(b"SECRET of the home folder")
    (server.home / "objects" / "inside.txt").write_bytes(b"SECRET of the wrong type")
    secret = (server.home / "root.key").read_bytes().strip()
    e = str(urls.expiry())
    for name in (key, key.replace("root.key", "secret.png"), f"{key}.png"):
        s = urls._signature(name, int(e))
        for written in (quote(name, safe="/"), quote(name, safe=""), quote(name, safe="/%"), name.encode().hex()):
            for query in (f"e={e}&s={s}", f"e={e}&s={'A' * len(s)}"):
                reply = await raw.exchange(api.url, raw.request("GET", f"/media/{written}?{query}"))
                assert reply.status in {400, 403, 404}, (written, reply)
                assert b"SECRET" not in reply.body
                assert secret not in reply.body


async def test_only_pictures_are_served_whatever_else_lies_in_the_store(
    anybody: Client, urls: MediaUrls, store: ObjectStore
) -> None:
    for name in ("page.html", "picture.svg", "script.js", "plain", "0.png.html", ".png/x"):
        await store.put(f"outputs/x/{name}", b"<script>alert(1)</script>", "text/html")
        answer = await anybody.call("GET", urls.sign(f"outputs/x/{name}"))
        assert answer.status == 403
        assert b"script" not in answer.body


async def test_an_object_that_was_removed_answers_404(anybody: Client, urls: MediaUrls, store: ObjectStore) -> None:
    key = "outputs/a/b/2/0.png"
    await store.put(key, PICTURE, "image/png")
    url = urls.sign(key)
    assert (await anybody.call("GET", url)).status == 200

    await store.delete([key])

    for method in ("GET", "HEAD"):
        assert (await anybody.call(method, url)).status == 404
    assert (await anybody.call("GET", urls.sign("outputs/never/was/1/0.png"))).json["code"] == "not_found"


async def test_nothing_can_be_written_by_url(api: Api, urls: MediaUrls, store: ObjectStore, server: Server) -> None:
    key = "outputs/a/b/3/0.png"
    await store.put(key, PICTURE, "image/png")
    target = urls.sign(key).removeprefix(api.url)

    for method in ("POST", "PUT", "PATCH", "DELETE"):
        reply = await raw.exchange(api.url, raw.request(method, target, None, b"overwritten"))
        assert reply.status == 405
    assert await store.read(key) == PICTURE
    assert Path(server.home / "objects" / key).read_bytes() == PICTURE
