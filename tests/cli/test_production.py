"""An installation that other people depend on gets no key that may do everything."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def test_up_in_production_makes_no_demo_organization(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "limner", "up", "--json", "--port", "0"],
        env=env | {"LIMNER_ENV": "production", "LIMNER_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    try:
        facts = json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert facts["base_url"].startswith("http://127.0.0.1:")
    assert [facts[name] for name in ("org", "app", "api_key", "end_user")] == [None] * 4
    assert not (tmp_path / "home" / "demo.key").exists()
