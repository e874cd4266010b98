"""Every setting has its place in the reference and in .env.example, with the value it has when nobody sets it."""

import re

import pytest

from limner.settings import Settings
from tests.contracts.source import REPOSITORY

REFERENCE = (REPOSITORY / "docs" / "reference" / "settings.md").read_text()
EXAMPLE = (REPOSITORY / ".env.example").read_text()
FIELDS = sorted(Settings.model_fields)


def _section(name: str) -> str:
    found = re.search(rf"^### {name}$\n(.*?)(?=^##|\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/settings.md needs a heading `### {name}`"
    return found[1]


@pytest.mark.parametrize("field", FIELDS)
def test_a_setting_says_its_default_and_when_to_change_it(field: str) -> None:
    section = _section(f"LIMNER_{field.upper()}")

    assert re.search(r"^Default: .+", section.strip()), f"{field}: the first line says the default and the unit"
    assert "Change it" in section, f"{field}: say when to change it"
    assert len(section.split()) >= 20


@pytest.mark.parametrize("field", FIELDS)
def test_the_documented_default_is_the_real_one(field: str) -> None:
    default = Settings.model_fields[field].default
    said = re.search(r"^Default: (.+)", _section(f"LIMNER_{field.upper()}").strip())
    assert said

    if isinstance(default, bool):
        assert f"`{str(default).lower()}`" in said[1]
    elif isinstance(default, int | float):
        numbers = {float(n.replace(",", "")) for n in re.findall(r"`([\d.,]+)`", said[1])}
        assert float(default) in numbers, said[1]
    elif isinstance(default, str):
        assert f"`{default}`" in said[1]
    elif default is None:
        assert "none" in said[1]


@pytest.mark.parametrize("field", FIELDS)
def test_a_setting_stands_in_the_example_commented_out(field: str) -> None:
    lines = [line for line in EXAMPLE.splitlines() if re.match(rf"^# LIMNER_{field.upper()}=", line)]

    assert len(lines) == 1, f".env.example needs one line `# LIMNER_{field.upper()}=…`"


def test_nothing_is_documented_that_is_no_setting() -> None:
    known = {f"LIMNER_{field.upper()}" for field in FIELDS}

    assert set(re.findall(r"^### (LIMNER_\w+)$", REFERENCE, re.MULTILINE)) == known
    assert set(re.findall(r"^# (LIMNER_\w+)=", EXAMPLE, re.MULTILINE)) == known


def test_the_example_sets_nothing_and_its_values_are_valid(tmp_path: object) -> None:
    """Copied as it stands it changes nothing; with every line switched on it is still a working configuration."""
    assert [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")] == []
    switched_on = dict(re.findall(r"^# LIMNER_(\w+)=(.*)$", EXAMPLE, re.MULTILINE))

    given = {name.lower(): value.strip() for name, value in switched_on.items() if value.strip()}

    assert Settings(**given, _env_file=None).model_fields_set == set(given)  # type: ignore[call-arg]
