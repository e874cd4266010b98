"""`limner providers seed` and `test`: known providers as rows of one's own, and what their servers say."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from uuid import uuid4

import pytest
import pytest_asyncio

from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import known
from limner.hub.known import KnownInvalid, KnownProvider
from limner.hub.providers import registry
from limner.hub.schema import InputSchema
from tests.cli.conftest import Limner
from tests.emulators import openai_server, openrouter

KEY = "sk-known-3310"
KNOWN = known.load()
WHOLE = """
[[provider]]
name = "far"
display_name = "Far"
adapter = "openai"
base_url = "https://far.example/v1"
[[provider.model]]
name = "far/one"
display_name = "One"
kind = "text.generate"
provider_model = "one"
unit = "tokens"
input_usd = "0.15"
cached_usd = "0.075"
output_usd = "0.6"
source = "https://far.example/prices"
read_on = 2026-11-21
"""


@pytest.fixture
def org(limner: Limner) -> str:
    slug = f"o-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    return slug


@pytest_asyncio.fixture
async def tidy(db: Database) -> AsyncIterator[None]:
    """What this test sells of the platform's is gone afterwards."""
    yield
    names = list(KNOWN)
    async with db.tenant_tx(PLATFORM, "limner_operator") as tx:
        own = [
            row["id"]
            for row in await tx.all(
                "SELECT id FROM limner.provider WHERE org_id = %s AND name = ANY(%s)", [PLATFORM, names]
            )
        ]
        await tx.execute("DELETE FROM limner.route WHERE org_id = %s AND provider_id = ANY(%s)", [PLATFORM, own])
        await tx.execute("DELETE FROM limner.model WHERE org_id = %s AND family = ANY(%s)", [PLATFORM, names])
        await tx.execute("DELETE FROM limner.provider WHERE org_id = %s AND id = ANY(%s)", [PLATFORM, own])


@pytest.mark.parametrize("provider", KNOWN.values(), ids=list(KNOWN))
def test_every_entry_is_complete(provider: KnownProvider) -> None:
    assert provider.base_url.startswith("https://")
    for model in provider.models:
        assert model.name.startswith(f"{provider.name}/")
        assert date(2026, 1, 1) <= model.read_on <= date.today()  # noqa: DTZ011
        assert model.source.startswith("https://")
        assert any(price > 0 for price in model.usd)
        facts = model.facts(provider.name, 100)
        assert InputSchema(facts["input_schema"])
        assert facts["price_mc"] + facts.get("input_price_mc", 0) > 0
        assert model.costs()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("unit = \"tokens\"", ""), "unit"), (('"0.15"', "0.15"), "price"), (('"0.15"', '"-1"'), "price"), (('"0.6"', '"many"'), "price"),
        (('source = "https://far.example/prices"', 'source = "memory"'), "source"), (("read_on = 2026-11-21", ""), "read_on"),
        (('kind = "text.generate"', 'kind = "text.sing"'), "kind"), (('adapter = "openai"', 'adapter = "openai"\nkey = "x"'), "key"),
        (('"https://far.example/v1"', '"http://far.example/v1"'), "https"), (("input_usd", "usd"), "prices"), (("[[", "[", ), "TOML"),
    ],
)  # fmt: skip
def test_an_entry_that_is_not_is_refused_by_name(change: tuple[str, str], words: str) -> None:
    assert known.load(WHOLE)["far"].models[0].usd == (Decimal("0.15"), Decimal("0.075"), Decimal("0.6"))

    with pytest.raises(KnownInvalid, match=words):
        known.load(WHOLE.replace(*change, 1))


def test_a_dry_run_says_what_would_be_and_does_nothing(limner: Limner, tidy: None) -> None:
    said = limner.ok("providers", "seed", "openai", "--dry-run")

    assert {step["outcome"] for step in said["steps"]} == {"installed"}
    assert all(step["source"] and step["read_on"] for step in said["steps"] if step["what"] == "model")
    assert "openai" not in {provider["name"] for provider in limner.ok("providers", "list")["providers"]}


def test_what_is_installed_is_the_operators_from_then_on(limner: Limner, tidy: None) -> None:
    limner.ok("providers", "seed", "openai")
    shown = limner.ok("models", "show", "openai/gpt-4o-mini")
    assert (shown["input_price"], shown["cached_price"], shown["output_price"]) == ("15", "7.5", "60")
    heard = limner.ok("models", "show", "openai/whisper-1")
    assert (heard["price"], heard["price_unit"], heard["routes"][0]["provider_model"]) == ("0.6", "minute", "whisper-1")
    own = {name: value for name, value in shown.items() if name not in {"enabled", "platform", "routes"}}
    path = limner.folder / "own.json"
    path.write_text(json.dumps(own | {"input_price": "99"}))
    limner.ok("models", "put", str(path))

    again = limner.ok("providers", "seed", "openai", "--credits-per-usd", "1000")

    assert {step["outcome"] for step in again["steps"]} == {"kept"}
    assert limner.ok("models", "show", "openai/gpt-4o-mini")["input_price"] == "99"
    forced = limner.ok("providers", "seed", "openai", "--credits-per-usd", "1000", "--force")
    assert {step["outcome"] for step in forced["steps"]} == {"overwritten"}
    assert limner.ok("models", "show", "openai/gpt-4o-mini")["input_price"] == "150"


def test_what_this_release_cannot_serve_is_passed_over_with_words(limner: Limner, tidy: None) -> None:
    for name, provider in KNOWN.items():
        if provider.adapter not in registry.all_kinds():
            [step] = limner.ok("providers", "seed", name)["steps"]
            assert (step["outcome"], step["why"]) == ("skipped", f"this release has no adapter {provider.adapter}")
    assert limner("providers", "seed", "nobody").code == 1
    assert limner("providers", "seed", "--model", "tiny").code == 2


async def test_models_of_a_server_that_lists_its_prices_are_sold_at_them(
    limner: Limner, tidy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with openrouter.running(KEY) as server:
        here = known.load(WHOLE)["far"]
        there = {
            "openrouter": KnownProvider(
                "openrouter", "OpenRouter", "openai", server.url, {"states_cost": True}, here.models[:0]
            )
        }
        monkeypatch.setattr(known, "load", lambda: there)

        arguments = ("providers", "seed", "openrouter", "--model", "tiny", "--model", "makers/large", "--json")
        said = await asyncio.to_thread(limner, *arguments, env=server.environment)
        refused = await asyncio.to_thread(limner, *arguments[:3], "--model", "auto", env=server.environment)

    assert said.code == 0, said.err
    assert [(step["name"], step["price"]) for step in said.json["steps"][1:]] == [
        ("openrouter/tiny", "$0.15 / 0.075 / 0.6 a million tokens"), ("openrouter/large", "$3 / 3 / 15 a million tokens"),
    ]  # fmt: skip
    tiny = limner.ok("models", "show", "openrouter/tiny")
    assert (tiny["input_price"], tiny["max_output_tokens"], tiny["price_source"]) == ("15", 512, f"{server.url}/models")
    assert (refused.code, "no price for auto" in refused.err) == (1, True)


async def test_a_test_of_all_says_who_answers_and_what_is_missing(limner: Limner, org: str) -> None:
    async with openai_server.running(KEY) as server:
        limner.ok("providers", "add", "near", server.url, "--org", org)
        limner.ok("providers", "add", "nobody", "http://127.0.0.1:1/v1", "--org", org)
        limner.ok("models", "add", "own/a", "--kind", "text.generate", "--provider", "near", "--provider-model", "tiny", "--price", "1",
                  "--org", org)  # fmt: skip
        plain = server.environment | {"LIMNER_EGRESS_PLAIN_ORIGINS": f"{server.origin},http://127.0.0.1:1"}
        said = await asyncio.to_thread(limner, "providers", "test", "--org", org, "--json", env=plain)
        one = await asyncio.to_thread(limner, "providers", "test", "near", "--org", org, env=plain)
        limner.ok("routes", "put", "own/a", "near", "--provider-model", "huge", "--org", org)
        lacking = await asyncio.to_thread(limner, "providers", "test", "near", "--org", org, "--json", env=plain)
        barred = await asyncio.to_thread(limner, "providers", "test", "near", "--org", org, "--json", env={})

    found = {one["provider"]: one for one in said.json["providers"]}
    assert (said.code, found["near"]["ok"], found["near"]["found"], found["local"]["ok"]) == (1, True, "4 models", None)
    assert (found["nobody"]["ok"], "cannot be reached" in found["nobody"]["found"]) == (False, True)
    assert (one.code, "4 models" in one.out) == (0, True)
    assert (lacking.code, lacking.json["providers"][0]["found"]) == (1, "4 models, but not huge")
    assert (barred.code, "LIMNER_EGRESS_PLAIN_ORIGINS" in barred.json["providers"][0]["found"]) == (1, True)
    assert KEY not in said.out + lacking.out + barred.out
