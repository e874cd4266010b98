"""Imports point down only, and siblings never see each other: the contract of pyproject.toml, kept."""

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.contracts.source import PACKAGE, REPOSITORY, sources

LINT = Path(sys.executable).parent / "lint-imports"


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_layers_are_kept() -> None:
    result = _run(REPOSITORY)

    assert result.returncode == 0, result.stdout
    assert "1 kept, 0 broken" in result.stdout


def test_every_part_of_the_package_stands_in_a_layer() -> None:
    contract = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = {name.strip().removeprefix("limner.") for layer in contract["layers"] for name in layer.split("|")}
    parts = {source.path.relative_to(PACKAGE).parts[0].removesuffix(".py") for source in sources()}

    assert contract["exhaustive"]
    assert parts - {"__init__", "__main__"} <= named


def test_a_wrong_import_would_be_found(tmp_path: Path) -> None:
    """The control: the same contract over a package in which kit imports the hub."""
    for part in ("kit", "hub"):
        (tmp_path / "limner" / part).mkdir(parents=True)
        (tmp_path / "limner" / part / "__init__.py").touch()
    (tmp_path / "limner" / "__init__.py").touch()
    (tmp_path / "limner" / "kit" / "wrong.py").write_text("from limner.hub import right\n")
    (tmp_path / "limner" / "hub" / "right.py").touch()
    text = (REPOSITORY / "pyproject.toml").read_text()
    contract = text[text.index("[tool.importlinter]") :].replace("exhaustive = true", "exhaustive = false")
    for layer in tomllib.loads(contract)["tool"]["importlinter"]["contracts"][0]["layers"]:
        if layer not in {"kit", "hub"}:
            contract = contract.replace(f'  "{layer}",\n', "")
    (tmp_path / "pyproject.toml").write_text(contract)

    result = _run(tmp_path)

    assert result.returncode != 0
    assert "limner.kit is not allowed to import limner.hub" in result.stdout
