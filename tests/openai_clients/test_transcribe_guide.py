"""docs/guide/transcribe.md, as it is written: sold, brought, written down, and by an OpenAI client."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import Server, Tenant
from tests.contracts.source import REPOSITORY
from tests.emulators.openai_server import OpenAIServer, heard_in
from tests.media import recordings
from tests.running import Api, Client

GUIDE = (REPOSITORY / "docs" / "guide" / "transcribe.md").read_text()
THERE = "http://127.0.0.1:8001"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the guide is written for curl and jq")
async def test_the_guide_works_as_it_is_written(
    house: Api, far: OpenAIServer, server: Server, shop: Tenant, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    sound = recordings.read("tone.mp3")
    (tmp_path / "speech.mp3").write_bytes(sound)
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
        "LIMNER_HOME": str(server.home), "LIMNER_DATABASE_URL": server.url, "LIMNER_URL": house.url, "KEY": shop.api_key, **far.environment,
    }  # fmt: skip
    sell, *rest = blocks("sh")
    sell = re.sub(r"^limner .*$", rf"\g<0> --org {shop.slug}", sell.replace(THERE, far.origin), flags=re.MULTILINE)
    script = "\n".join(["set -eu", sell, *rest]).replace("demo-user", shop.user)

    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = await Client(http, house.url, shop.api_key).finished(
        json.loads((tmp_path / "job.json").read_text())["job_id"]
    )
    [program] = blocks("python")
    program = program.replace("demo-user", shop.user)
    said = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip

    assert (job["status"], job["outputs"][0]["text"]) == ("succeeded", heard_in(sound))
    assert {"language": "en", "duration": 2.9}.items() <= job["outputs"][0]["facts"].items()
    assert said.stdout == f"english 2.9 {heard_in(sound)}\n", said.stderr
