"""The resolver against a nameserver on a real socket."""

import asyncio
from collections.abc import Sequence

import pytest

from limner.egress import resolving
from limner.egress.resolving import DnsResolver
from tests.emulators import nameserver
from tests.emulators.nameserver import Silent


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "LIFETIME_S", 0.4)
    monkeypatch.setattr(resolving, "TRY_S", 0.2)


async def test_both_families_come_back_and_the_name_is_absolute() -> None:
    names = {"a.example.com": ["93.184.216.34", "93.184.216.35", "2606:4700::1111", "::ffff:10.0.0.1"]}
    async with nameserver.running(nameserver.table(names)) as server:
        found = await DnsResolver(["127.0.0.1"], server.port).resolve("a.example.com")

    assert sorted(found[:2]) == ["93.184.216.34", "93.184.216.35"]
    assert sorted(found[2:]) == ["2606:4700::1111", "::ffff:10.0.0.1"]
    assert sorted(server.asked) == [("a.example.com", "A"), ("a.example.com", "AAAA")]


async def test_nothing_is_remembered() -> None:
    async with nameserver.running(nameserver.table({"a.example.com": ["1.1.1.1"]})) as server:
        resolver = DnsResolver(["127.0.0.1"], server.port)
        first = await resolver.resolve("a.example.com")
        server.answers = nameserver.table({"a.example.com": ["10.0.0.1"]})

        assert (first, await resolver.resolve("a.example.com")) == (["1.1.1.1"], ["10.0.0.1"])


async def test_names_without_addresses_and_names_that_do_not_exist_have_none() -> None:
    async with nameserver.running(nameserver.table({"empty.example.com": []})) as server:
        resolver = DnsResolver(["127.0.0.1"], server.port)

        assert await asyncio.gather(*map(resolver.resolve, ("empty.example.com", "nobody.example.com"))) == [[], []]


async def test_a_family_that_nobody_answers_for_does_not_hide_the_other(quick: None) -> None:
    def half(_name: str, kind: str) -> Sequence[str]:
        if kind == "AAAA":
            raise Silent
        return ["1.1.1.1"]

    async with nameserver.running(half) as server:
        assert await DnsResolver(["127.0.0.1"], server.port).resolve("a.example.com") == ["1.1.1.1"]


async def test_a_nameserver_that_is_not_there_knows_no_names(quick: None) -> None:
    async with nameserver.running(nameserver.table({})) as server:
        port = server.port

    assert await DnsResolver(["127.0.0.1"], port).resolve("a.example.com") == []


async def test_a_long_answer_comes_whole() -> None:
    many = [f"2606:4700::{number:x}" for number in range(1, 41)]
    async with nameserver.running(nameserver.table({"many.example.com": many})) as server:
        found = await DnsResolver(["127.0.0.1"], server.port).resolve("many.example.com")

    assert len(found) == 40
