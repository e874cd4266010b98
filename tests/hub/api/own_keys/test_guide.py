"""docs/guide/bring-your-own-key.md, its shell blocks as they stand there, in their order."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import Server
from tests.contracts.source import REPOSITORY
from tests.hub.api.own_keys.brought import House, Shops

GUIDE = REPOSITORY / "docs" / "guide" / "bring-your-own-key.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


async def test_the_guide_does_what_it_says(shops: Shops, house: House, server: Server, tmp_path: Path) -> None:
    """The provider is the organization's own here, under another name, so that no other test meets it."""
    shop = await shops()
    program = "\n".join(BLOCK.findall(GUIDE.read_text()))
    for theirs, ours in {
        "https://api.openai.com/v1 --called": f"{house.first.url} --org {shop.tenant.slug} --called",
        "--provider openai": f"--org {shop.tenant.slug} --provider openai",
        "gpt-5-mini": "tiny",
        "org ai demo": f"org ai {shop.tenant.slug}",
        "--org demo": f"--org {shop.tenant.slug}",
    }.items():
        assert theirs in program
        program = program.replace(theirs, ours)
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
        "LIMNER_HOME": str(server.home), "LIMNER_DATABASE_URL": server.url, "LIMNER_EGRESS_PLAIN_ORIGINS": house.first.origin,
        "LIMNER_URL": house.api.url, "KEY": shop.tenant.api_key, "OPENAI_API_KEY": "sk-of-the-guide-1234",
    }  # fmt: skip

    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", program.replace("demo-user", shop.tenant.user)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, (done.stdout, done.stderr)
    told = _objects(done.stdout)
    put, receipt, listed = told
    assert (put["last4"], put["sent_to"]) == ("ider", house.first.origin)
    assert [attempt["key"] for attempt in receipt["attempts"]] == ["own"]
    assert float(receipt["credits"]["held"]) > float(receipt["credits"]["charged"]) > 0
    assert [key["last4"] for key in listed["provider_keys"]] == ["1234"]
    assert listed["provider_keys"][0]["last_error"] is None
    assert shop.keys(house.first) == ["sk-of-the-guide-1234"]
    assert "sk-of-the-guide-1234" not in done.stdout + done.stderr


def _objects(text: str) -> list[Any]:
    """The JSON objects in an output, whatever stands between them."""
    found, at = [], 0
    while (at := text.find("{", at)) >= 0:
        value, at = json.JSONDecoder().raw_decode(text, at)
        found.append(value)
    return found
