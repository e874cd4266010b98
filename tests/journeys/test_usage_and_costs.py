"""docs/guide/usage-and-costs.md, command by command, as a reader would type them."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Server, Tenant
from tests.running import Api

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "usage-and-costs.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide is written for curl")
def test_the_guide_works_as_it_is_written(api: Api, server: Server, tenant: Tenant, tmp_path: Path) -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)[
        1:
    ]  # the first is for a reader's own shell
    script = "\n".join(["set -eu", *commands]).replace("--org demo", f"--org {tenant.slug}")
    script = script.replace("org change demo", f"org change {tenant.slug}")
    folder = str(Path(sys.executable).parent)

    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "LIMNER_URL": api.url, "KEY": tenant.api_key, "LIMNER_HOME": str(server.home),
             "PATH": folder + os.pathsep + os.environ["PATH"]},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    [shown] = re.findall(r"^```json\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert json.loads((tmp_path / "usage.json").read_text())["usage"] == json.loads(shown)
    told = list(csv.DictReader((tmp_path / "usage.csv").open(newline="")))
    assert [(line["user_id"], line["credits"]) for line in told] == [("ann", "4"), ("ben", "2")]
    row = next(line.split() for line in done.stdout.splitlines() if "report/extract" in line and "$" in line)
    assert row[-6:] == ["3", "6", "0", "$0.0045", "$0.06", "$0.0555"]
    margins = list(csv.DictReader((tmp_path / "margin.csv").open(newline="")))
    assert sum(int(line["margin_micro_usd"]) for line in margins) == 55_500
    [costs] = json.loads((tmp_path / "costs.json").read_text())["usage"]
    assert (costs["provider"], costs["cost_micro_usd"]) == ("local", 4500)
