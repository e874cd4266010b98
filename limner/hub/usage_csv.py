"""Usage as lines of CSV (RFC 4180), which spreadsheets open without taking anything in it for a formula."""

import csv
import io
import unicodedata
from collections.abc import Iterable

FORMULA = frozenset("=+-@")


def line(cells: Iterable[str | int | None]) -> str:
    """One line with its end. Texts are made harmless; numbers stay numbers; None is an empty cell."""
    out = io.StringIO()
    csv.writer(out).writerow(
        ["" if cell is None else harmless(cell) if isinstance(cell, str) else cell for cell in cells]
    )
    return out.getvalue()


def harmless(text: str) -> str:
    """A text that no spreadsheet calculates: one that could begin a formula gets an apostrophe in front (OWASP, CSV injection)."""
    begin = unicodedata.normalize("NFKC", text.lstrip())[:1]
    return f"'{text}" if begin in FORMULA or text[:1] in {"\t", "\r", "\n"} else text
