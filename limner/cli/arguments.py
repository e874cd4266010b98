"""Arguments and options that many commands share, and how their text is read. What is wrong with one is exit code 2."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from limner.kit import ids, money
from limner.ledger import wallets

CREDITS = re.compile(r"[0-9]{1,13}(\.[0-9]{1,3})?", re.ASCII)
MAX_CREDITS_MC = 10**12 * money.MC
NO_BOUND = -1
MAX_BOUND = 1_000_000
MAX_REASON = 500
MAX_REF = 200
MAX_FILE_BYTES = 1024 * 1024


def group(words: str) -> typer.Typer:
    """A noun: its verbs are registered on it."""
    return typer.Typer(help=words, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def read_credits(text: str) -> int:
    """ "12.5" -> 12500, exactly. Raises typer.BadParameter: not a plain decimal, too fine, nothing, or absurd."""
    if not CREDITS.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is not an amount of credits: write 12 or 12.5, at most 3 decimals, no sign")
    whole, _, fraction = text.partition(".")
    amount = int(whole) * money.MC + int(fraction.ljust(3, "0") or "0")
    if amount > MAX_CREDITS_MC:
        raise typer.BadParameter("more than 1,000,000,000,000 credits")
    return amount


def read_positive_credits(text: str) -> int:
    """As `read_credits`, above zero."""
    amount = read_credits(text)
    if amount == 0:
        raise typer.BadParameter("must be more than 0 credits")
    return amount


def read_cap(text: str) -> int:
    """Credits, or "none" (-> 0) to lift a cap."""
    return 0 if text == "none" else read_positive_credits(text)


def read_bound(text: str) -> int:
    """A whole number, or "none" (-> NO_BOUND) to lift a limit. Raises typer.BadParameter."""
    if text == "none":
        return NO_BOUND
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MAX_BOUND:
        raise typer.BadParameter(f'{text!r} is neither a whole number from 1 to {MAX_BOUND:,} nor "none"')
    return int(text)


def read_count(text: str) -> int:
    """As `read_bound`, or 0."""
    return 0 if text == "0" else read_bound(text)


def bound(value: int | None) -> int | Literal["none"] | None:
    """As the queue's verbs take it."""
    return "none" if value == NO_BOUND else value


def limits_of(monthly: int | None, **given: int | None) -> dict[str, int | None]:
    """By column: what was given, None where it was "none". Whole monthly credits become milli-credits."""
    limits = {name: None if value == NO_BOUND else value for name, value in given.items() if value is not None}
    return limits | ({} if monthly is None else {"monthly_mc": monthly * money.MC})


def read_id(text: str) -> UUID:
    """Raises typer.BadParameter."""
    found = ids.parse(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not an id: 36 characters like 019a1f85-126f-701c-b732-d9e071145302")
    return found


def read_name(text: str) -> str:
    """A display name. Raises typer.BadParameter."""
    if not 1 <= len(text) <= 200 or not text.isprintable():
        raise typer.BadParameter("a name is 1 to 200 printable characters")
    return text


def read_reason(text: str) -> str:
    """Raises typer.BadParameter."""
    if not 1 <= len(text) <= MAX_REASON or not text.isprintable():
        raise typer.BadParameter(f"a reason is 1 to {MAX_REASON} printable characters")
    return text


def read_ref(text: str) -> str:
    """Raises typer.BadParameter."""
    if not 1 <= len(text) <= MAX_REF or not (text.isascii() and text.isprintable()):
        raise typer.BadParameter(f"a reference is 1 to {MAX_REF} visible ASCII characters")
    return text


def read_json_object(text: str) -> dict[str, Any]:
    """Raises typer.BadParameter: not JSON, or not an object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("must be a JSON object")
    return value


def read_json_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 1 MiB. Raises typer.BadParameter."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise typer.BadParameter(f"{path} is larger than 1 MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from None
    try:
        return read_json_object(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{path}: {error.message}") from None


def read_moment(text: str) -> datetime:
    """ "2026-12-31T23:59:59Z", or a day, which is its beginning in UTC. Raises typer.BadParameter."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is not None and len(text) == len("2026-12-31"):
        found = found.replace(tzinfo=UTC)
    if found is None or found.tzinfo is None:
        raise typer.BadParameter(f"{text!r} is not a moment: write 2026-12-31, or 2026-12-31T23:59:59Z with an offset")
    return found


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Org = Annotated[str, typer.Option("--org", help="The organization's slug or id.")]
OrgOrPlatform = Annotated[
    str | None, typer.Option("--org", help="The organization's slug or id; without it the platform's own catalog.")
]
App = Annotated[str, typer.Option("--app", help="The app's slug or id.")]
AppOrAll = Annotated[str | None, typer.Option("--app", help="The app's slug or id; without it all of them.")]
Credits = Annotated[int, typer.Argument(parser=read_positive_credits, metavar="CREDITS", help='Decimal, e.g. "12.5".')]
Reason = Annotated[str, typer.Option("--reason", parser=read_reason, metavar="TEXT", help="Shown on statements.")]
Ref = Annotated[
    str | None,
    typer.Option("--ref", parser=read_ref, metavar="TEXT",
                 help="Your reference: the same one again does nothing twice. Made when absent."),
]  # fmt: skip
Kind = Annotated[wallets.Kind, typer.Option("--kind", help="Told apart on statements.")]
Expires = Annotated[
    datetime | None,
    typer.Option(
        "--expires", parser=read_moment, metavar="MOMENT", help="When they end; without it never. A day or RFC 3339."
    ),
]
Weight = Annotated[
    int | None, typer.Option("--weight", min=1, max=1000, help="Its part when workers are short; 1 at first.")
]
MaxRunning = Annotated[
    int | None,
    typer.Option("--max-running", parser=read_bound, metavar="N|none", help="At most so many of its jobs run at once."),
]
JobsPerMin = Annotated[
    int | None,
    typer.Option("--jobs-per-min", parser=read_bound, metavar="N|none", help="At most so many jobs a minute."),
]
Monthly = Annotated[
    int | None,
    typer.Option("--monthly-credits", min=0, max=1_000_000_000, metavar="N", help="Whole credits each month; 0: none."),
]
JobId = Annotated[UUID, typer.Argument(parser=read_id, metavar="JOB_ID", help="The job's id.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most this many rows.")]
