"""Adding a provider takes one file: the guide's, installed as a package of somebody else's, in front of an emulated service."""

import asyncio
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from limner.db.pools import Database
from limner.hub.providers import configuration, registry
from limner.hub.providers.base import ConfigInvalid
from limner.hub.providers.kinds import AdapterKind
from tests.adapters.counter import Counter
from tests.adapters.packages import GUIDE, blocks
from tests.conftest import MakeTenant
from tests.emulators.wordsmith import Wordsmith
from tests.running import Api


@pytest.fixture
async def customer(house: Api, db: Database, make_tenant: MakeTenant, smith: Wordsmith) -> Counter:
    counter = Counter(house, db, await make_tenant(credits=100))
    await counter.route("wordsmith", f"{smith.origin}/v1", theirs="plain")
    return counter


async def test_the_guides_file_does_jobs(customer: Counter, smith: Wordsmith) -> None:
    smith.refusals = [503]

    job, receipt = await customer.buy(prompt="a hare")

    assert (job["status"], job["outputs"][0]["text"]) == ("succeeded", "plain: a hare"), job
    assert [a.get("error", {}).get("code") for a in receipt["attempts"]] == ["provider_unavailable", None]
    assert {"kind": "output_tokens", "quantity": 4} in [
        {n: use[n] for n in ("kind", "quantity")} for use in receipt["usage"]
    ]


async def test_what_it_does_not_know_it_refuses(customer: Counter, smith: Wordsmith) -> None:
    before = smith.written

    job, _ = await customer.buy(prompt="a hare", temperature=1)

    assert (job["status"], job["error"]["code"], smith.written) == ("failed", "unsupported_input", before)


async def test_it_is_listed_and_answers_no_calls(customer: Counter, packaged: Mapping[str, str]) -> None:
    said = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "limner", "providers", "adapters", "--json"], capture_output=True, env=packaged, check=True
    )  # fmt: skip
    listed = {kind["name"]: kind for kind in json.loads(said.stdout)["adapters"]}
    answer = await customer.ask()

    assert {"local", "openai", "anthropic", "gemini", "wordsmith"} <= listed.keys()
    assert listed["wordsmith"] == {
        "name": "wordsmith", "call_class": "A", "kinds": ["text.generate"], "default_base_url": "https://api.wordsmith.example/v1",
        "key_header": "x-api-key", "answers_at_once": False,
    }  # fmt: skip
    assert (answer.status, answer.json["error"]["code"]) == (503, "no_provider")


def test_the_guide_names_every_field_that_there_is() -> None:
    text = GUIDE.read_text()

    assert [name for name in AdapterKind.__dataclass_fields__ if f"| `{name}` |" not in text] == []
    assert tomllib.loads(blocks("toml")[0])["project"]["entry-points"][registry.GROUP] == {
        "wordsmith": "limner_wordsmith:ADAPTER"
    }


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (EntryPoint("odd", "no_such_module:ADAPTER", registry.GROUP), "odd (no_such_module:ADAPTER) cannot be loaded"),
        (EntryPoint("odd", "limner.hub.providers.kinds:AdapterKind", registry.GROUP), "is no AdapterKind"),
        (EntryPoint("twin", "limner.hub.providers.anthropic:ADAPTER", registry.GROUP), "there is an adapter anthropic already"),
    ],
    ids=["missing", "nothing", "twin"],
)  # fmt: skip
def test_an_adapter_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, point: EntryPoint, words: str
) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])

    with pytest.raises(registry.AdapterInvalid) as caught:
        registry.all_kinds.__wrapped__()

    assert words in str(caught.value)


@pytest.mark.long
async def test_a_broken_adapter_keeps_a_worker_from_starting(packaged: Mapping[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "limner_broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: limner-broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[limner.adapters]\nbroken = limner_broken:ADAPTER\n")
    env = {**packaged, "PYTHONPATH": f"{tmp_path}:{packaged['PYTHONPATH']}", "LIMNER_HOME": str(tmp_path / "home")}

    said = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "limner", "worker"], capture_output=True, env=env, text=True, check=False
    )

    assert said.returncode == 3
    assert "refusing to start: the adapter broken (limner_broken:ADAPTER) cannot be loaded" in said.stderr


@pytest.mark.parametrize("adapter", ["anthropic", "gemini"])
def test_a_row_may_leave_its_address_out_where_its_adapter_has_one(adapter: str) -> None:
    configuration.check(adapter, None, {"timeout_s": 5})

    assert (configuration.address(adapter, None) or "").startswith("https://")
    assert configuration.address(adapter, "http://here") == "http://here"
    assert configuration.address("openai", None) is None
    for config in ({"key": "x"}, {"timeout_s": 0}):
        with pytest.raises(ConfigInvalid):
            configuration.check(adapter, None, config)
    with pytest.raises(ConfigInvalid):
        configuration.check_kind(adapter, "image.upscale")
