"""What the guide for programs shows is run as it stands there; other guides have tests of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Tenant
from tests.contracts.source import REPOSITORY
from tests.running import Api, Process

GUIDES = REPOSITORY / "docs" / "guide"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = {
    ("batch.md", 0): [
        "4 credits on hold",
        "4 of 4 done, 0 failed",
        "3 A harbour with 4 boats 1 picture",
        "4 credits charged",
    ],
    ("from-a-program.md", 0): ["2 credits"],
    ("from-a-program.md", 1): ["1 credits on hold", "job.started", "job.completed"],
    ("from-a-program.md", 2): ["The harbour froze in January."],
    ("from-a-program.md", 3): ["'charged': '1'"],
}
PROGRAMS = [(guide.name, number, text) for guide in sorted(GUIDES.glob("*.md"))
            for number, text in enumerate(BLOCK.findall(guide.read_text())) if (guide.name, number) in PRINTED]  # fmt: skip


@pytest.mark.parametrize(("guide", "number", "text"), PROGRAMS, ids=[f"{name}-{n}" for name, n, _ in PROGRAMS])
def test_a_guides_program_does_what_it_says(
    guide: str, number: int, text: str, api: Api, worker: Process, tenant: Tenant, tmp_path: Path
) -> None:
    environment = {
        "LIMNER_URL": api.url,
        "KEY": tenant.api_key,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
    }

    done = subprocess.run(
        [sys.executable, "-c", text.replace("demo-user", tenant.user)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    for words in PRINTED[guide, number]:
        assert words in done.stdout
