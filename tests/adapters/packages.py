"""The guide's adapter, installed as pip would: its module, and the metadata by which it is found."""

import re
import tomllib
from pathlib import Path

from tests.contracts.source import REPOSITORY

GUIDE = REPOSITORY / "docs" / "guide" / "add-a-provider.md"


def blocks(language: str) -> list[str]:
    """The guide's code in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def install(folder: Path) -> None:
    """What the guide shows, importable from `folder`."""
    (module,) = blocks("python")
    project = tomllib.loads(blocks("toml")[0])["project"]
    (folder / "limner_wordsmith.py").write_text(module)
    named = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in points.items()) for group, points in groups
    ]
    (named / "entry_points.txt").write_text("\n".join(lines))
