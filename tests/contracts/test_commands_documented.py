"""Every command has its heading in docs/reference/cli.md, and every heading is a command."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from limner.cli import main
from tests.contracts.source import REPOSITORY

REFERENCE = REPOSITORY / "docs" / "reference" / "cli.md"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(words after `limner`, command) for each; those that load on demand are loaded."""
    for child, found in getattr(command, "commands", {}).items():
        if not found.hidden:
            yield from _commands(found, f"{name} {child}".strip())
    if not hasattr(command, "commands") or (name and command.invoke_without_command):
        yield name, command


COMMANDS = dict(_commands(typer.main.get_command(main.app), ""))


def test_there_are_commands() -> None:
    assert {"api", "worker", "db migrate"} <= set(COMMANDS)


def test_every_command_has_its_heading_and_every_heading_a_command() -> None:
    headings = re.findall(r"^#+ `?limner ([a-z -]+?)`?$", REFERENCE.read_text(), re.MULTILINE)

    missing = sorted(set(COMMANDS) - set(headings))
    groups = {name.rpartition(" ")[0] for name in COMMANDS}
    unknown = sorted(set(headings) - set(COMMANDS) - groups)

    assert missing == [], "docs/reference/cli.md needs a heading `limner …` for each"
    assert unknown == [], "no such command"


def test_every_option_is_named_under_its_command() -> None:
    text = REFERENCE.read_text()

    missing = [
        (name, option)
        for name, command in COMMANDS.items()
        for parameter in command.params
        for option in parameter.opts[:1]
        if option.startswith("--") and option not in {"--help", "--version"} and not getattr(parameter, "hidden", False)
        if option not in text
    ]

    assert missing == []


def test_every_command_says_what_it_does() -> None:
    assert [name for name, command in COMMANDS.items() if not (command.help or "").strip()] == []
