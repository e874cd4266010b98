"""docs/guide/check-a-text.md, read and done as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Tenant
from tests.running import Api

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "check-a-text.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def environment(api: Api, tenant: Tenant) -> dict[str, str]:
    """What the guide expects of the shell."""
    folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "LIMNER_URL": api.url,
        "KEY": tenant.api_key,
        "PATH": folder + os.pathsep + os.environ["PATH"],
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's first example needs curl")
def test_the_guides_curl_finds_what_the_guide_shows(environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-c", blocks("sh")[0]], env=environment, capture_output=True, check=True, timeout=30)

    [shown] = blocks("json")
    told = json.loads(done.stdout)
    assert [s["original"] for s in told["suggestions"]] == re.findall(r'"original": "([^"]+)"', shown)
    assert [s["suggestion"] for s in told["suggestions"]] == ["receive", "To", None]
    assert told["suggestions"][0]["position"] == {"start": 8, "end": 15}


def test_the_guides_python_prints_what_the_guide_says(environment: dict[str, str]) -> None:
    [program] = blocks("python")

    done = subprocess.run([sys.executable, "-c", program], env={**environment, "PYTHONIOENCODING": "utf-8"}, capture_output=True,
                          check=True, timeout=30)  # fmt: skip

    assert f"prints `{done.stdout.decode().strip()}`" in GUIDE


def test_the_guides_command_works_on_a_file(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("The center.")

    done = subprocess.run(["bash", "-c", blocks("sh")[1]], env=environment | {"LIMNER_HOME": str(tmp_path)}, cwd=tmp_path,
                          capture_output=True, text=True, check=True, timeout=30)  # fmt: skip

    assert "centre" in done.stdout
