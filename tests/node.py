"""Official Node clients, where this machine has Node and npm: installed from their lock files once a run, each into a folder of its own."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

needed = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs Node and npm (an official Node client)"
)


@cache
def installed(source: Path, program: str) -> Path:
    """A folder in which `program`, of the folder `source` like its package files, finds what they lock."""
    folder = Path(tempfile.mkdtemp(prefix="limner-node-"))
    for name in ("package.json", "package-lock.json", program):
        shutil.copy(source / name, folder)
    subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=folder, check=True, timeout=180)
    return folder
