"""docs/guide/openai-clients.md and budgets.md, block by block as they stand there: shell, Python and Node."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from PIL import Image

from tests.conftest import Server, Tenant
from tests.contracts.source import REPOSITORY
from tests.openai_clients import node
from tests.running import Api, Process

GUIDES = REPOSITORY / "docs" / "guide"
Reader = Callable[[str, str], str]


def blocks(guide: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", (GUIDES / guide).read_text(), re.MULTILINE | re.DOTALL)
    return [str(text) for text in found]


@pytest.fixture
def read(api: Api, worker: Process, server: Server, tenant: Tenant, tmp_path: Path) -> Reader:
    """Runs a program of a guide's as the test's own organization would, and answers what it prints."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8", "LIMNER_HOME": str(server.home),
        "LIMNER_URL": api.url, "KEY": tenant.api_key,
    }  # fmt: skip
    here = {"demo-user": tenant.user, "--org demo": f"--org {tenant.slug}", "--app demo": f"--app {tenant.app.slug}",
            "app change demo": f"app change {tenant.app.slug}"}  # fmt: skip

    def run(language: str, text: str) -> str:
        for theirs, ours in here.items():
            text = text.replace(theirs, ours)
        folder = tmp_path
        if language == "js":
            folder = node.installed()
            (folder / (name := f"{uuid4().hex}.mjs")).write_text(text)
        command = {
            "sh": ["bash", "-euo", "pipefail", "-c", text],
            "python": [sys.executable, "-c", text],
            "js": ["node", name if language == "js" else ""],
        }[language]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        return done.stdout

    return run


def test_the_clients_guide_works_in_python(read: Reader, tmp_path: Path) -> None:
    said = read("python", "\n".join(blocks("openai-clients.md", "python")))

    assert said.splitlines()[0] in "The harbour froze in January. No ship left it until March."
    assert re.search(r"^ \d+ tokens written$", said, re.MULTILINE)
    assert said.endswith("2 vectors of 384\n")
    assert [Image.open(tmp_path / name).size for name in ("harbour.png", "edited.png")] == [(512, 512), (512, 512)]
    assert (tmp_path / "harbour.png").read_bytes() != (tmp_path / "edited.png").read_bytes()


@node.needed
def test_the_clients_guide_works_in_node(read: Reader) -> None:
    [program] = blocks("openai-clients.md", "js")

    said = read("js", program)

    assert said.splitlines()[0] in "The harbour froze in January. No ship left it until March."
    assert re.search(r"^0\.\d+ credits$", said, re.MULTILINE)


def test_the_clients_guide_sells_what_it_says(read: Reader, tenant: Tenant) -> None:
    _, *commands = blocks("openai-clients.md", "sh")
    for text in commands:
        read("sh", text)

    sold = json.loads(read("sh", f"limner models list --org {tenant.slug} --json"))["models"]
    own = {model["name"]: model for model in sold if not model["platform"]}
    assert (own["acme/chat"]["input_price"], own["acme/chat"]["output_price"]) == ("15", "60")
    assert (own["omni-moderation-latest"]["kind"], own["omni-moderation-latest"]["price_unit"]) == (
        "text.moderate",
        "tokens",
    )


def test_the_budgets_guide_holds(read: Reader, tenant: Tenant, superuser: psycopg.Connection) -> None:
    _, funded, books = blocks("budgets.md", "sh")
    [program] = blocks("budgets.md", "python")

    read("sh", funded)
    printed = read("python", program).strip()
    told = read("sh", books)

    assert f"It prints `{printed}`" in (GUIDES / "budgets.md").read_text()
    assert '"token_balance":0,"tokens_held":0' in told.replace(" ", "")
    assert told.count("Set aside 1 for a budget/extract job") == 10
    charged = superuser.execute(
        "SELECT count(*), sum(price_final_mc) FROM limner.job WHERE org_id = %s AND state = 'succeeded'",
        [tenant.org_id],
    ).fetchone()
    assert charged == (10, 10_000)
