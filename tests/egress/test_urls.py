"""What a stranger's URL may look like, and that it is sent as it was read."""

import pytest

from limner.egress import urls
from limner.egress.answers import DestinationNotAllowed
from limner.egress.destinations import Destinations
from tests.egress import hostile

DOOR = Destinations((), hostile.OWN_HOSTS, hostile.OWN_NETWORKS)

GOOD = {
    "https://hooks.example.com": "https://hooks.example.com/",
    "https://hooks.example.com/": "https://hooks.example.com/",
    "HTTPS://Hooks.Example.COM/In?a=1&b=%20#part": "https://hooks.example.com/In?a=1&b=%20",
    "https://hooks.example.com:443/in": "https://hooks.example.com/in",
    "https://hooks.example.com:8443/in": "https://hooks.example.com:8443/in",
    "https://hooks.example.com?x=1": "https://hooks.example.com/?x=1",
    "https://hooks.example.com/a/../b": "https://hooks.example.com/a/../b",
    "https://hooks.example.com//x": "https://hooks.example.com//x",
    "https://hooks.example.com/@in:1": "https://hooks.example.com/@in:1",
    "https://hooks.example.com/?next=https://127.0.0.1/": "https://hooks.example.com/?next=https://127.0.0.1/",
    "https://hooks.example.com/größe.png?ö=ü": "https://hooks.example.com/gr%C3%B6%C3%9Fe.png?%C3%B6=%C3%BC",
    'https://hooks.example.com/"<x>|{y}^`': "https://hooks.example.com/%22%3Cx%3E%7C%7By%7D%5E%60",
    "https://bücher.example.com/": "https://xn--bcher-kva.example.com/",
    "https://BÜCHER.example.com/": "https://xn--bcher-kva.example.com/",
    "https://xn--bcher-kva.example.com/": "https://xn--bcher-kva.example.com/",
    "https://ｅｘａｍｐｌｅ．com/": "https://example.com/",
    "https://例え.テスト.com/": "https://xn--r8jz45g.xn--zckzah.com/",
    "https://r3---sn-4g5e.example.com/": "https://r3---sn-4g5e.example.com/",
    "https://1.example.com/": "https://1.example.com/",
    "https://127.0.0.1.example.com/": "https://127.0.0.1.example.com/",
    "https://limner.example/": "https://limner.example/",
    "https://notapi.limner.example/": "https://notapi.limner.example/",
    "https://internal.example.com/": "https://internal.example.com/",
}


@pytest.mark.parametrize("url", GOOD)
def test_a_good_url_is_sent_as_it_was_read(url: str) -> None:
    DOOR.check(url)

    assert urls.parse(url).url == GOOD[url]
    assert urls.parse(GOOD[url]) == urls.parse(url)


def test_ps3_a_url_with_a_way_around_is_refused_by_its_text() -> None:
    passed, told = [], set()
    for url in hostile.WRITTEN:
        try:
            DOOR.check(url)
        except DestinationNotAllowed as refused:
            told.add(str(refused))
        else:
            passed.append(url)

    assert passed == []
    assert len(told) < 20, "words of limner's own, not the URL's"


def test_a_name_is_not_looked_up_to_check_a_url() -> None:
    for name in hostile.RESOLVED:
        DOOR.check(f"https://{name}/")


def test_exceptions_are_exact_origins_and_own_names_stay_refused() -> None:
    door = Destinations(["http://127.0.0.1:9000", "http://receiver:80", "http://api.limner.example"], hostile.OWN_HOSTS)

    door.check("http://127.0.0.1:9000/in")
    door.check("http://receiver/in")
    for other in (
        "https://127.0.0.1:9000/in", "http://127.0.0.1:9001/", "http://127.0.0.2:9000/", "http://127.1:9000/",
        "http://user@127.0.0.1:9000/", "http://127.0.0.1:9000\\@x/", "http://receiver:81/", "https://receiver/",
        "http://api.limner.example/",
    ):  # fmt: skip
        with pytest.raises(DestinationNotAllowed):
            door.check(other)


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/b", "https://a.example.com/b"),
        ("b?c", "https://a.example.com/x/b?c"),
        ("//b.example.com/c", "https://b.example.com/c"),
        ("https://b.example.com", "https://b.example.com"),
        ("?q", "https://a.example.com/x/y?q"),
    ],
)
def test_redirects_are_joined_to_where_they_come_from(location: str, leads_to: str) -> None:
    assert urls.joined(urls.parse("https://a.example.com/x/y?z"), location) == leads_to


@pytest.mark.parametrize("location", ["\\\\evil.example.com", "/\tb", "ht\ntps://b.example.com", "//[::1", " /b"])
def test_ps3_a_redirect_that_would_be_repaired_is_refused(location: str) -> None:
    """`urljoin` leaves tabs and line ends out; a browser takes a backslash for a slash."""
    with pytest.raises(DestinationNotAllowed):
        urls.joined(urls.parse("https://a.example.com/"), location)


@pytest.mark.parametrize(
    "entry", ["http://", "receiver:80", "https://a.example.com/path", "ftp://a.example.com", "https://0x7f.1"]
)
def test_exceptions_that_are_no_origins_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="not an origin"):
        Destinations([entry], [])
