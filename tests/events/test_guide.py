"""The guide's code does what the guide says: each block is run as it stands there."""

import json
import re
import shutil
import subprocess
import time
from typing import Any
from uuid import uuid4

import pytest

from limner.kit import signing
from limner.kit.signing import Keys
from tests.contracts.source import REPOSITORY

GUIDE = (REPOSITORY / "docs" / "guide" / "receive-webhooks.md").read_text()
OLD, NEW, WRONG = b"o" * 32, b"n" * 32, b"w" * 32
BODY = '{"type":"job.completed","data":{"text":"Gr\u00fc\u00dfe"}}'.encode()


def _code(language: str) -> str:
    [code] = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    return str(code)


def _cases() -> list[tuple[str, dict[str, str], bytes, bool]]:
    """(secret, headers, body, whether it verifies)"""
    sent = signing.headers(Keys((NEW, OLD), b"e" * 32), uuid4(), int(time.time()), BODY)
    late = signing.headers(Keys((NEW,)), uuid4(), int(time.time()) - 400, BODY)
    new, old, wrong = map(signing.secret_text, (NEW, OLD, WRONG))
    return [
        (new, sent, BODY, True),
        (old, sent, BODY, True),
        (wrong, sent, BODY, False),
        (new, sent, BODY + b" ", False),
        (new, late, BODY, False),
    ]


def test_the_python_of_the_guide_verifies() -> None:
    there: dict[str, Any] = {}
    exec(_code("python"), there)

    assert [there["verify"](secret, sent, body) for secret, sent, body, _ in _cases()] == [c[-1] for c in _cases()]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_javascript_of_the_guide_verifies() -> None:
    cases = [{"secret": s, "headers": h, "body": b.decode()} for s, h, b, _ in _cases()]
    program = f"""{_code("js")}
const answers = {json.dumps(cases)}.map(({{ secret, headers, body }}) => verify(secret, headers, Buffer.from(body)));
process.stdout.write(JSON.stringify(answers));"""

    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=30)

    assert json.loads(done.stdout) == [c[-1] for c in _cases()]
