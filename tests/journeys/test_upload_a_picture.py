"""docs/guide/upload-a-picture.md, command by command, as a reader would type them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import pyvips

from tests.conftest import Tenant
from tests.running import Client, Process

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide" / "upload-a-picture.md").read_text()


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the guide is written for curl and jq")
async def test_the_guide_works_as_it_is_written(
    client: Client, tenant: Tenant, worker: Process, tmp_path: Path
) -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    shutil.copy(ROOT / "limner" / "demo" / "astronaut.png", tmp_path / "photo.png")
    script = "\n".join(["set -eu", *commands]).replace("demo-user", tenant.user)

    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], "LIMNER_URL": client.url, "KEY": tenant.api_key},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    ready = json.loads((tmp_path / "ready.json").read_text())
    shown = json.loads(re.findall(r"^```json\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)[0])
    assert {name: ready[name] for name in shown} == shown
    assert pyvips.Image.new_from_buffer((tmp_path / "small.webp").read_bytes(), "").width == 320
    job = await client.finished(json.loads((tmp_path / "job.json").read_text())["job_id"])
    assert job["status"] == "succeeded"
    assert (await client.call("GET", f"/api/v1/uploads/{ready['id']}")).status == 404
