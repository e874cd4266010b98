"""`limner check`: offline, without a database, from a file or standard input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Limner, environment

TEXT = "Did you recieve it?\r\nIn order to read, the the letter was opened. 😀\n"


@pytest.fixture
def alone(tmp_path: Path) -> Limner:
    """Commands on a home where nothing is, and with a database that is nowhere."""
    return Limner(tmp_path / "home", tmp_path)


NOWHERE = {"LIMNER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}


def test_a_file_is_checked_without_server_and_database(alone: Limner, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_bytes(TEXT.encode())

    said = alone.process("check", "letter.txt", env=NOWHERE)

    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["at", "severity", "type", "text", "better", "why", "rule"]
    assert [line.split()[:3] for line in lines[2:]] == [
        ["1:9", "error", "grammar"], ["2:1", "suggestion", "brevity"], ["2:19", "error", "repetition"],
        ["2:34", "suggestion", "passive"],
    ]  # fmt: skip
    assert "4 suggestions in 13 words" in said.err
    assert not alone.home.exists(), "nothing is made"


def test_standard_input_and_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "limner", "check", "-", "--json", "--dialect", "british", "--type", "grammar", "--ignore", "RECIEVE"],
        input=("\ufeffThe center. " + TEXT).encode(), env=environment(tmp_path, **NOWHERE), cwd=tmp_path, capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    [center] = said["suggestions"]
    assert (center["original"], center["suggestion"], center["position"]) == (
        "center",
        "centre",
        {"start": 4, "end": 10},
    )
    assert said["dialect"] == "british"


def test_nothing_to_suggest_is_said(alone: Limner, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("The cat sleeps.")
    (tmp_path / "german.txt").write_text("Das Wetter ist heute sehr schön und wir gehen zusammen in den Park, weil die Kinder dort "
                                         "spielen wollen und der Hund laufen muss.")  # fmt: skip

    assert alone("check", str(tmp_path / "good.txt")).out == "Nothing to suggest.\n"
    assert "not read like English" in alone("check", str(tmp_path / "german.txt")).out


@pytest.mark.parametrize(
    ("data", "words"), [(b"\xff\xfe\xff", "cannot be read"), (b"x" * 51, "50 characters"), (None, "cannot be read")]
)
def test_what_cannot_be_read_is_wrong_usage(alone: Limner, tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "text.txt"
    if data is not None:
        path.write_bytes(data)

    said = alone("check", str(path), env={"LIMNER_CHECK_MAX_CHARS": "50"})

    assert said.code == 2
    assert words in said.err


def test_a_type_that_is_none_is_wrong_usage(alone: Limner, tmp_path: Path) -> None:
    said = alone("check", "-", "--type", "grammar", "--type", "style")

    assert said.code == 2
    assert "'style' is not one of grammar, brevity" in said.err


def test_the_parent_process_never_loads_the_dictionary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The the cat.")
    code = (
        "import sys\nfrom limner.cli import main\n"
        "try:\n    main.app(['check', 'a.txt'])\nexcept SystemExit:\n    pass\nprint('LOADED', 'harper' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path) | {"PATH": os.environ["PATH"]},
                          capture_output=True, text=True, check=True, timeout=60)  # fmt: skip

    assert "The the" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED False"
