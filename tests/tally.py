"""What the larger tiers counted, for people and for a file: a test says it as `tally("MJ5", kills=200, lost=0)`.

Shown at the end of make test-long and make soak; the soak's also stands in out/soak.json.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests import tiers

OUT = Path(__file__).parents[1] / "out" / "soak.json"
SHOWN = ("long", "soak")


class Tally:
    """Counts in the order in which they were made."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.counted: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, promise: str, **counted: Any) -> None:
        self.counted.append((promise, counted))

    def facts(self) -> dict[str, list[dict[str, Any]]]:
        promises: dict[str, list[dict[str, Any]]] = {}
        for promise, counted in self.counted:
            promises.setdefault(promise, []).append(counted)
        return promises


KEY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KEY] = Tally()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several hands its counts to the one that tells them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = session.config.stash[KEY].counted


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """pytest-xdist's: one of the processes has ended."""
    node.config.stash[KEY].counted += [tuple(entry) for entry in getattr(node, "workeroutput", {}).get("tally", [])]


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[KEY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[KEY]
    tier = config.option.markexpr
    if tier not in SHOWN or not tally.counted:
        return
    terminalreporter.section("what was counted")
    for promise, counted in tally.counted:
        terminalreporter.write_line(f"{promise}: " + ", ".join(f"{name} {value}" for name, value in counted.items()))
    if tier != "soak":
        return
    ended = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    facts = {"soak": tiers.SOAK or "plain", "seconds": round(time.monotonic() - tally.began)} | ended
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(facts | {"promises": tally.facts()}, indent=2) + "\n")
    terminalreporter.write_line(f"also in {OUT.relative_to(OUT.parents[1])}")
