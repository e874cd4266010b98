"""The official Node library, where this machine has Node and npm: installed from the lock file once a run, into a folder of its own."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from limner.kit import signing

HERE = Path(__file__).parent
needed = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs Node and npm (the official Node library)"
)


@cache
def _installed() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="limner-node-"))
    for name in ("package.json", "package-lock.json", "verify.js"):
        shutil.copy(HERE / name, folder)
    subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=folder, check=True, timeout=120)
    return folder


def verify(requests: Sequence[tuple[bytes, dict[str, str], bytes]]) -> list[Any]:
    """True, or the library's complaint, for each (secret, headers, body)."""
    asked = [{"secret": signing.secret_text(s), "headers": h, "body": b.decode()} for s, h, b in requests]
    done = subprocess.run(
        ["node", "verify.js"], cwd=_installed(), input=json.dumps(asked), capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    answers: list[Any] = json.loads(done.stdout)
    return answers
