"""Runs a scenario of tests/egress/stage.py in a network namespace of its own, where every address leads back to the machine."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.source import REPOSITORY
from tests.egress import certificates

NAMES = ("*.example.com", "api.openai.com")
WITHIN_S = 240


@functools.cache
def _prefix() -> tuple[str, ...]:
    """The words before a command, or none where namespaces are not to be had."""
    program = shutil.which("unshare")
    if program is None or shutil.which("ip") is None:
        return ()
    words = (program, "--net") if os.geteuid() == 0 else (program, "--user", "--map-root-user", "--net")
    tried = subprocess.run([*words, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return words if tried.returncode == 0 else ()


def run(scenario: str, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Any:
    """What the scenario counted. Skips the test where this machine permits no namespaces."""
    prefix = _prefix()
    if not prefix:
        pytest.skip("needs unshare --net and ip: root, or a machine that permits user namespaces")
    made = certificates.make(folder, *NAMES)
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.egress.stage", scenario, str(made.chain), *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"SSL_CERT_FILE": str(made.authority)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
