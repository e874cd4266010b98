"""The help page answers at once: no noun's module is loaded for it."""

import subprocess
import sys
from importlib import metadata

import pytest

HEAVY = (
    "fastapi",
    "uvicorn",
    "alembic",
    "sqlalchemy",
    "psycopg",
    "obstore",
    "pydantic",
    "aiohttp",
    "cv2",
    "pyvips",
    "numpy",
)
PROBE = """
import sys
from limner.cli import main
try:
    main.app(["--help"])
except SystemExit:
    pass
print("LOADED", *[name for name in sys.argv[1:] if name in sys.modules])
"""


def _limner(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "limner", *arguments], capture_output=True, text=True, check=False, timeout=30
    )


def test_the_help_page_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *HEAVY], capture_output=True, text=True, check=True, timeout=30)

    assert done.stdout.splitlines()[-1] == "LOADED"
    assert "Organizations" in done.stdout


def test_the_supervisor_loads_no_web_framework_and_no_migrations() -> None:
    code = (
        "import sys, limner.cli.up; print(*[n for n in ('fastapi', 'uvicorn', 'alembic', 'cv2') if n in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)

    assert done.stdout.strip() == ""


def test_the_version_is_the_packages() -> None:
    assert _limner("--version").stdout == f"limner {metadata.version('limner')}\n"


@pytest.mark.parametrize("arguments", [["orgs"], ["org", "lst"], ["org", "create"], ["up", "--port", "x"]])
def test_wrong_usage_is_exit_2_on_standard_error(arguments: list[str]) -> None:
    done = _limner(*arguments)

    assert done.returncode == 2
    assert done.stdout == ""
    assert "Error:" in done.stderr
