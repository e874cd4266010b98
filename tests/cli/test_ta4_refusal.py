"""TA4: a serving process looks at its own powers and leaves, with exit code 3, when it has too many."""

import psycopg
import pytest

from tests.cli.conftest import Limner

POWERS = [
    ("worker", "limner_worker", "CREATEDB", "may create databases"),
    ("worker", "limner_dispatch", "BYPASSRLS", "may bypass row level security"),
    ("api", "limner_api", "SUPERUSER", "is a superuser"),
    ("api", "limner_api", "CREATEROLE", "may create roles"),
]


@pytest.mark.parametrize(("command", "role", "power", "words"), POWERS)
def test_ta4_a_process_with_too_much_power_refuses_to_start(
    limner: Limner, superuser: psycopg.Connection, command: str, role: str, power: str, words: str
) -> None:
    superuser.execute(f"ALTER ROLE {role} {power}")
    try:
        said = limner.process(command, env={"LIMNER_PORT": "0"})
    finally:
        superuser.execute(f"ALTER ROLE {role} NO{power}")

    assert said.code == 3
    assert words in said.err
