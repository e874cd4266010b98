"""What an operator may set about calls to the outside, and how mistakes are told without repeating a key."""

from typing import Any

import pytest
from pydantic import ValidationError

from limner.egress import destinations, doors
from limner.egress.answers import DestinationNotAllowed
from limner.egress.untrusted import UntrustedDoor
from limner.settings import Settings
from tests.emulators import rogue

KEY = "sk-secret"
LISTS = ("egress_hosts", "egress_plain_origins", "egress_allow_origins")


def settings(**given: Any) -> Settings:
    return Settings(**given, _env_file=None)  # type: ignore[call-arg]


def test_lists_come_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_EGRESS_HOSTS", " api.openai.com, Models.Example.COM ,")
    monkeypatch.setenv("LIMNER_EGRESS_PLAIN_ORIGINS", '["http://127.0.0.1:11434", "http://[::1]", "HTTP://Models:80/"]')

    found = settings()

    assert found.egress_hosts == ("api.openai.com", "models.example.com")
    assert found.egress_plain_origins == ("http://127.0.0.1:11434", "http://[::1]:80", "http://models:80")
    assert settings(egress_hosts="[]").egress_hosts == ()


def test_what_is_set_makes_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "LIMNER_PROVIDER_KEYS", f'{{"https://api.openai.com": "{KEY}", "http://127.0.0.1:11434": "local"}}'
    )
    monkeypatch.setenv("LIMNER_EGRESS_PLAIN_ORIGINS", "http://127.0.0.1:11434")
    monkeypatch.setenv("LIMNER_EGRESS_ALLOW_ORIGINS", "http://127.0.0.1:9000")

    found = settings()

    assert found.provider_keys.keys() == {"https://api.openai.com:443", "http://127.0.0.1:11434"}
    doors.fixed(found)
    destinations.of(found).check("http://127.0.0.1:9000/in")
    assert KEY not in repr(found) + str(found.model_dump()) + found.model_dump_json()


async def test_the_key_of_the_settings_goes_with_a_call() -> None:
    async with rogue.running(rogue.plain(200)) as server:
        door = doors.fixed(settings(egress_plain_origins=server.origin, provider_keys={server.origin: KEY}))
        await door.request("GET", server.origin, timeout_s=5, max_bytes=10)
        await door.aclose()

    assert server.requests[0].header("authorization") == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "public_url", ["https://api.limner.example", "https://API.limner.example:8443/", "http://api.limner.example"]
)
def test_this_installations_own_host_is_refused(public_url: str) -> None:
    door = destinations.of(settings(public_url=public_url))

    door.check("https://other.limner.example/")
    for url in ("https://api.limner.example/", "https://api.limner.example:8443/x", "https://eu.api.limner.example/"):
        with pytest.raises(DestinationNotAllowed):
            door.check(url)


async def test_own_networks_are_refused() -> None:
    class Resolver:
        async def resolve(self, name: str) -> list[str]:
            return ["93.184.215.14"]

    found = settings(egress_own_networks="93.184.215.7/24, 2606:2800:220::/48")

    assert found.egress_own_networks == ("93.184.215.0/24", "2606:2800:220::/48")
    with pytest.raises(DestinationNotAllowed):
        await UntrustedDoor(destinations.of(found), Resolver()).fetch("https://a.example.com/", max_bytes=1)
    with pytest.raises(ValidationError):
        settings(egress_own_networks="internal")


@pytest.mark.parametrize("field", LISTS)
@pytest.mark.parametrize(
    "value", ["http//x", "https://a.example.com/path", "a b", "https://user@a.example.com", "0x7f.1", "["]
)
def test_what_is_no_host_or_origin_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**{field: value})

    assert refused.value.errors()[0]["loc"][0] == field


def test_exceptions_for_strangers_are_refused_in_production() -> None:
    settings(env="production", egress_plain_origins="http://127.0.0.1:11434")

    with pytest.raises(ValidationError, match="must not be set in production"):
        settings(env="production", egress_allow_origins="http://127.0.0.1:9000")


@pytest.mark.parametrize(
    "value",
    [
        f'{{"https://api.openai.com": "{KEY}"',
        f'["{KEY}"]',
        f'"{KEY}"',
        KEY,
        f'{{"{KEY}": "https://api.openai.com"}}',
        f'{{"api.openai.com": "{KEY}"}}',
        f'{{"https://api.openai.com/v1": "{KEY}"}}',
        f'{{"https://evil.example.com": "{KEY}"}}',
        f'{{"http://api.openai.com": "{KEY}"}}',
        f'{{"https://api.openai.com:8443": "{KEY}"}}',
        f'{{"https://api.openai.com": "{KEY}\\n"}}',
        f'{{"https://api.openai.com": "{KEY} "}}',
        '{"https://api.openai.com": ""}',
        f'{{"https://api.openai.com": "{KEY}", "HTTPS://API.openai.com:443": "{KEY}"}}',
        f'{{"https://api.openai.com": ["{KEY}"]}}',
    ],
)
def test_a_key_that_cannot_work_is_refused_and_not_repeated(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_PROVIDER_KEYS", value)

    with pytest.raises(ValidationError) as refused:
        settings()

    assert refused.value.errors()[0]["loc"][0] == "provider_keys"
    assert KEY not in str(refused.value)
