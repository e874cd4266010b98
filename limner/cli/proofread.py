"""`limner check`: what may be better in a text. Needs no server and no database; works offline."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json
from limner.hub.providers.local.writing import report
from limner.hub.providers.local.writing.report import Dialect, Report, Type
from limner.kit.cpu import CpuError, CpuPool
from limner.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STANDARD_INPUT = "-"
MAX_UTF8 = 4  # bytes of a character


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="A plain text in UTF-8; - is standard input.")],
    dialect: Annotated[Dialect, typer.Option("--dialect", help="Whose English.")] = "american",
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="WORD|RULE", help="Right as it is; may come many times.")
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="|".join(report.TYPES), help="Only these; may come many times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Grammar, spelling, wordiness, clichés, passives and repetitions in an English text, each with its place."""
    config = session.settings()
    wanted = _types(types or ())
    text = _read(file, config.check_max_chars)
    try:
        found = asyncio.run(_check(config, text, dialect, tuple(ignore or ()), wanted))
    except CpuError as error:
        printing.fail(f"{file} cannot be checked: {error}")
    if as_json:
        printing.document(report.body(found))
    else:
        _tell(text, found)


def _types(given: Sequence[str]) -> tuple[Type, ...]:
    """Raises typer.BadParameter for what is no type."""
    for name in given:
        if name not in report.TYPES:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(report.TYPES)}", param_hint="--type")
    return tuple(kind for kind in report.TYPES if kind in given)


def _read(file: str, max_chars: int) -> str:
    """The text as it is, line ends included. Raises typer.BadParameter."""
    most = max_chars * MAX_UTF8 + 1
    try:
        if file == STANDARD_INPUT:
            data = sys.stdin.buffer.read(most)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(most)
        text = data.decode("utf-8-sig") if len(data) < most else None
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    if text is None or len(text) > max_chars:
        raise typer.BadParameter(f"{file} has more than {max_chars:,} characters (LIMNER_CHECK_MAX_CHARS)")
    return text


async def _check(
    config: Settings, text: str, dialect: Dialect, ignore: tuple[str, ...], types: tuple[Type, ...]
) -> Report:
    pool = CpuPool(1, config.cpu_memory_bytes, config.cpu_time_limit_s)
    try:
        return cast(Report, await pool.run(report.CHECK, text, dialect, ignore, types))
    finally:
        await pool.aclose()


def _tell(text: str, found: Report) -> None:
    if found.language != "en":
        printing.say("This does not read like English: too many words are not in the dictionary.")
        return
    rows = (
        (_place(text, s.start), s.severity, s.type, s.original, _better(s.replacement), s.explanation, s.rule)
        for s in found.suggestions
    )
    printing.table(("at", "severity", "type", "text", "better", "why", "rule"), rows, empty="Nothing to suggest.")
    if found.suggestions:
        more = ", and more behind them" if found.truncated else ""
        printing.note(f"{len(found.suggestions):,} suggestions in {found.words:,} words{more}")


def _place(text: str, start: int) -> str:
    """Line and column, from 1, as editors count."""
    return f"{text.count(chr(10), 0, start) + 1}:{start - text.rfind(chr(10), 0, start)}"


def _better(replacement: str | None) -> str | None:
    return "(leave it out)" if replacement == "" else replacement
