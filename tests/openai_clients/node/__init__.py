"""OpenAI's Node client, where this machine has Node and npm: installed from the lock file once a run, into a folder of its own."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
needed = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs Node and npm (the official Node client)"
)


@cache
def installed() -> Path:
    """A folder from which a program finds the client."""
    folder = Path(tempfile.mkdtemp(prefix="limner-node-"))
    for name in ("package.json", "package-lock.json", "talk.mjs"):
        shutil.copy(HERE / name, folder)
    subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=folder, check=True, timeout=180)
    return folder
