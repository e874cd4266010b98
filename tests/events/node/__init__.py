"""The official Node library of Standard Webhooks."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.kit import signing
from tests import node

HERE = Path(__file__).parent
needed = node.needed


def verify(requests: Sequence[tuple[bytes, dict[str, str], bytes]]) -> list[Any]:
    """True, or the library's complaint, for each (secret, headers, body)."""
    asked = [{"secret": signing.secret_text(s), "headers": h, "body": b.decode()} for s, h, b in requests]
    done = subprocess.run(
        ["node", "verify.js"], cwd=node.installed(HERE, "verify.js"), input=json.dumps(asked), capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    answers: list[Any] = json.loads(done.stdout)
    return answers
