"""Schemathesis over a running server's own OpenAPI document, in a process of its own and over real sockets.

Its command line is what it promises to keep: four phases (the document's examples, the edges of every schema, random
requests, chains of requests that use what earlier ones answered), and one JSON report.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "allow_header_conformance",
    "ignored_auth",
)
PHASES = "examples,coverage,fuzzing,stateful"
PROGRAM = ("-m", "schemathesis.cli", "run")
WITHIN_S = 3600.0


@dataclass(frozen=True)
class Fuzzed:
    """A run's report, and what it printed: each failure with a curl command that shows it again."""

    report: dict[str, Any]
    printed: str

    @property
    def requests(self) -> int:
        return int(self.report["test_cases"]["generated"])

    @property
    def operations(self) -> int:
        return int(self.report["operations"]["tested"])

    @property
    def found(self) -> list[tuple[str, str]]:
        """(operation, what is wrong with it), and what kept the run from finding out."""
        failures = [
            (operation, failure["type"]) for failure in self.report["failures"] for operation in failure["operations"]
        ]
        return sorted(failures) + [("", error["title"]) for error in self.report["errors"]]


async def fuzz(
    url: str,
    examples: int,
    folder: Path,
    *,
    headers: Mapping[str, str],
    anew: bool = False,
    without: Mapping[str, str] | None = None,
) -> Fuzzed:
    """Up to `examples` requests of each phase for every operation of `url`/openapi.json, but for the paths in `without`
    (path: why). The same requests each time, unless `anew`.
    """
    report = folder / "report.json"
    arguments = [
        f"{url}/openapi.json", "--phases", PHASES, "--checks", ",".join(CHECKS), "--max-examples", str(examples),
        "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--no-color", "--workers", "1",
        "--request-timeout", "20", "--report", "json", "--report-json-path", str(report),
    ]  # fmt: skip
    arguments += ["--generation-database", "none"] if anew else ["--generation-deterministic"]
    for name, value in headers.items():
        arguments += ["--header", f"{name}: {value}"]
    for path in without or {}:
        arguments += ["--exclude-path", path]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *PROGRAM, *arguments, cwd=folder, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(WITHIN_S):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    text = printed.decode(errors="replace")
    assert report.exists(), text
    return Fuzzed(json.loads(report.read_text()), text)
