"""How often a promise is put to the test: by make test, make test-long, make soak, and make soak with SOAK=full."""

import os
from typing import Any

import pytest

SOAK = os.environ.get("SOAK", "")
assert SOAK in {"", "full"}, f"SOAK is empty or full, not {SOAK!r}"
FULL = SOAK == "full"


def counts(pr: Any = None, long: Any = None, soak: Any = None, full: Any = None) -> list[Any]:
    """Values for parametrize, each marked for its tier; a tuple gives several arguments. `full` takes the place of `soak`."""
    most = full if FULL and full is not None else soak
    tiers = ((pr, ()), (long, pytest.mark.long), (most, pytest.mark.soak))
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks)
        for value, marks in tiers
        if value is not None
    ]
