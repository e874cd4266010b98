"""What commands print: tables for people, one JSON document for machines, errors on one line of standard error.

Names, prompts and reasons come from other people: control characters in them are shown, never obeyed, and square
brackets are not Rich's markup.
"""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import orjson
import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from limner.kit import money

WIDE = 400  # columns when nobody's screen sets a width: a pipe gets every row on one line
PROSE = 100  # the same for words that are to be read
NUMBER_COLUMNS = frozenset(
    {
        "credits",
        "available",
        "on hold",
        "granted",
        "change",
        "balance",
        "price",
        "charged",
        "refunded",
        "jobs",
        "quantity",
        "cost",
        "value",
        "margin",
        "cap",
        "out",
        "in",
    }
)


def console(*, stderr: bool = False, prose: bool = False) -> Console:
    """A console for this moment's standard output or error: as wide as the screen, without one as wide as needed."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else PROSE if prose else WIDE, highlight=False, soft_wrap=False
    )


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong on standard error and leave: 1 refused or failed, 2 wrong usage, 3 unsafe to run."""
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), clean(message, lines=True)), soft_wrap=True)
    raise typer.Exit(code)


def note(message: str) -> None:
    """A remark beside the result, on standard error."""
    console(stderr=True).print(Text(clean(message)), soft_wrap=True)


def say(message: str) -> None:
    """One line of result."""
    console().print(Text(clean(message)), soft_wrap=True)


def document(value: Any) -> None:
    """One JSON document; UUIDs as text, times in RFC 3339 UTC. Amounts are the caller's strings of credits."""
    print(
        orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_INDENT_2 | orjson.OPT_NAIVE_UTC).decode(), flush=True
    )


def show(shown: RenderableType, *, prose: bool = False) -> None:
    """Print a table or text; in a pipe without the blanks that fill its last column."""
    target = console(prose=prose)
    if target.is_terminal:
        target.print(shown)
        return
    with target.capture() as captured:
        target.print(shown)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table for people, or the words `empty` when there is nothing to show."""
    shown = grid(columns, rows)
    if shown.row_count:
        show(shown)
    else:
        say(empty)


def grid(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """The table itself, for what shows it among other things."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name in columns:
        right = name in NUMBER_COLUMNS
        shown.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        shown.add_row(*(cell(value) for value in row))
    return shown


def facts(pairs: Iterable[tuple[str, Any]], *, prose: bool = False) -> None:
    """A thing's fields, one a line."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in pairs:
        shown.add_row(Text(name), cell(value))
    show(shown, prose=prose)


def cell(value: Any) -> Text:
    """A value as people read it."""
    match value:
        case Text():
            return value
        case None:
            return Text("–", style="dim")
        case bool():
            return Text("yes") if value else Text("no", style="yellow")
        case datetime():
            return Text(when(value))
        case _:
            return Text(clean(str(value)))


def clean(text: str, *, lines: bool = False) -> str:
    """The text with what a terminal would obey made visible; line ends stay only with `lines`."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text)


def when(moment: datetime) -> str:
    """UTC to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def grouped(mc: int | None) -> str | None:
    """Exact, with commas in the thousands: 1234500 -> "1,234.5"."""
    if mc is None:
        return None
    whole, dot, rest = money.exact(mc).partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{int(digits):,}{dot}{rest}"


def dollars(micro_usd: int | None) -> str | None:
    """Exact to the millionth: 1250 -> "$0.00125"."""
    if micro_usd is None:
        return None
    whole, rest = divmod(abs(micro_usd), 1_000_000)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro_usd < 0 else ''}${whole:,}.{decimals}"


def exact(mc: int | None) -> str | None:
    """Credits for machines: a decimal string, since floats do not carry money."""
    return None if mc is None else money.exact(mc)
