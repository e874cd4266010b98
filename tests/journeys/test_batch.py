"""docs/guide/batch.md, read and done as it stands there; its program is run by test_guides.py."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Tenant
from tests.contracts.source import REPOSITORY
from tests.running import Api, Process

GUIDE = (REPOSITORY / "docs" / "guide" / "batch.md").read_text()


def done(block: str, api: Api, tenant: Tenant, folder: Path) -> str:
    """What a block for the shell prints."""
    environment = {
        **os.environ, "LIMNER_URL": api.url, "KEY": tenant.api_key, "LIMNER_HOME": str(folder),
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"], "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    command = block.replace("demo-user", tenant.user)
    ended = subprocess.run(
        ["bash", "-c", command], env=environment, cwd=folder, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's first example needs curl")
def test_the_guides_request_and_file_do_what_the_guide_says(
    api: Api, worker: Process, tenant: Tenant, tmp_path: Path
) -> None:
    _, request, file = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    [shown] = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)

    told = [json.loads(done(request, api, tenant, tmp_path)) for _ in range(2)]
    submitted = done(file, api, tenant, tmp_path)

    assert told[0] == told[1]
    assert told[0] == json.loads(shown) | {"batch_id": told[0]["batch_id"]}
    assert re.search(r"`(completed: .*?)`", GUIDE.replace("\n", " "))[1] in submitted  # type: ignore[index]
