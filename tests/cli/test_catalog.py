"""The catalog by command: an organization's own models, providers and routes, and files that are wrong."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.cli.conftest import Limner

MODEL: dict[str, Any] = {
    "name": "acme/poster", "display_name": "Poster", "kind": "image.generate", "price": "2.5",
    "input_schema": {
        "type": "object", "additionalProperties": False, "required": ["prompt"], "properties": {"prompt": {"type": "string"}},
    },
}  # fmt: skip


@pytest.fixture
def org(limner: Limner) -> str:
    slug = f"c-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    return slug


def _file(folder: Path, value: Any) -> str:
    path = folder / f"{uuid4().hex}.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_an_organization_sells_a_model_of_its_own(limner: Limner, org: str) -> None:
    put = limner.ok("models", "put", _file(limner.folder, MODEL), "--org", org)
    assert (put["price"], put["price_unit"], put["platform"]) == ("2.5", "output", False)
    provider = {"name": "second", "display_name": "Second", "adapter": "local", "config": {"max_pixels": 1000}}
    limner.ok("providers", "put", _file(limner.folder, provider), "--org", org)
    limner.ok(
        "routes", "put", "acme/poster", "second", "--provider-model", "local/canvas", "--priority", "2", "--org", org
    )
    limner.ok("routes", "put", "acme/poster", "local", "--provider-model", "local/canvas", "--org", org)

    shown = limner.ok("models", "show", "acme/poster", "--org", org)

    assert [route["provider"] for route in shown["routes"]] == ["local", "second"]
    assert "acme/poster" not in {model["name"] for model in limner.ok("models", "list")["models"]}
    assert limner("routes", "remove", "acme/poster", "second", "--org", org).code == 0
    assert limner("models", "disable", "acme/poster", "--org", org).code == 0
    assert limner.ok("models", "show", "acme/poster", "--org", org)["enabled"] is False


def test_the_platforms_catalog_is_everybodys_to_read_and_not_an_organizations_to_change(
    limner: Limner, org: str
) -> None:
    assert "local/canvas" in {model["name"] for model in limner.ok("models", "list", "--org", org)["models"]}

    assert limner("models", "disable", "local/canvas", "--org", org).code == 1
    assert limner("providers", "disable", "local", "--org", org).code == 1
    assert limner("routes", "remove", "local/canvas", "local", "--org", org).code == 1


def test_seeding_again_changes_nothing(limner: Limner) -> None:
    before = limner.ok("models", "list")

    steps = limner.ok("providers", "seed")["steps"]
    assert [step["outcome"] for step in steps] == ["kept"] * 8

    assert limner.ok("models", "list") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"price": "2.5555"}, "at most 3 decimals"),
        ({"price": -1}, "price"),
        ({"price": True}, "price"),
        ({"colour": "red"}, "unknown colour"),
        ({"input_schema": []}, "input_schema must be an object"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"expected_s": "soon"}, "expected_s"),
        ({"price_unit": "word"}, "price_unit"),
    ],
)
def test_a_wrong_field_is_named(limner: Limner, org: str, change: dict[str, Any], words: str) -> None:
    said = limner("models", "put", _file(limner.folder, MODEL | change), "--org", org)

    assert said.code == 2
    assert words in said.err


def test_a_schema_that_lets_anything_pass_is_refused_clearly(limner: Limner, org: str) -> None:
    loose = MODEL | {"input_schema": {"type": "object"}}
    broken = MODEL | {"input_schema": MODEL["input_schema"] | {"properties": {"prompt": {"type": "strange"}}}}

    said, also = (limner("models", "put", _file(limner.folder, model), "--org", org) for model in (loose, broken))

    assert (said.code, also.code) == (1, 1)
    assert "additionalProperties" in said.err
    assert "prompt" in also.err
    assert also.err.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "{}"])
def test_a_file_that_is_no_model_is_refused(limner: Limner, org: str, content: str) -> None:
    assert limner("models", "put", _file(limner.folder, content), "--org", org).code == 2


@pytest.mark.parametrize("cap", [0, -1, True, "3", 1.5, 1_000_001, [2]])
def test_mj17_a_cap_that_is_none_is_refused_clearly(limner: Limner, org: str, cap: Any) -> None:
    provider = {"name": "box", "display_name": "Box", "adapter": "local", "max_running": cap}

    said = limner("providers", "put", _file(limner.folder, provider), "--org", org)

    assert said.code == 2
    assert "max_running must be a whole number from 1 to 1,000,000, or null" in said.err
    assert limner("providers", "set", "nobody", "--max-running", "3", "--org", org).code == 1


def test_an_absent_file_is_refused(limner: Limner) -> None:
    said = limner("providers", "put", "nowhere.json")

    assert said.code == 2
    assert "cannot be read" in said.err


def test_events_are_told(limner: Limner) -> None:
    assert "job.completed" in {event["type"] for event in limner.ok("events")["events"]}
