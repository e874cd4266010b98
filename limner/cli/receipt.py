"""Receipts as people read them: the credits of each job, then who worked on it and why."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from limner.cli import printing

AMOUNTS = ("before", "held", "charged", "refunded", "after")
COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "done": "green",
    "error": "red",
    "delivered": "green",
}
Receipt = Mapping[str, Any]


def show(receipts: Sequence[Receipt], *, title: str = "Receipt") -> None:
    """Tables: credits, with a total when there are several receipts, attempts, and webhooks where there are any."""
    printing.show(_credits(receipts, title), prose=True)
    printing.show(_attempts(receipts), prose=True)
    if any(receipt["webhooks"] for receipt in receipts):
        printing.show(_webhooks(receipts), prose=True)


def _credits(receipts: Sequence[Receipt], title: str) -> Table:
    refunds = any(Decimal(receipt["credits"]["refunded"]) for receipt in receipts)
    names = [name for name in AMOUNTS if refunds or name != "refunded"]
    table = _table(title)
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for receipt in receipts:
        amounts = receipt["credits"]
        table.add_row(
            printing.clean(receipt["model"]), *(_amount(amounts[name]) for name in names), _state(receipt["status"])
        )
    if len(receipts) > 1:
        table.add_section()
        total: dict[str, str | None] = {
            name: str(sum(Decimal(r["credits"][name] or 0) for r in receipts)) for name in names
        }
        total |= {"before": _first(receipts), "after": _last(receipts)}
        table.add_row("total", *(_amount(total[name]) for name in names), style="bold")
    return table


def _attempts(receipts: Sequence[Receipt]) -> Table:
    table = _table("Attempts")
    for name in ("model", "run", "provider", "outcome"):
        table.add_column(name, no_wrap=True)
    table.add_column("latency", justify="right", no_wrap=True)
    costs = any("cost_micro_usd" in attempt for receipt in receipts for attempt in receipt["attempts"])
    if costs:
        table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("chosen as")
    for receipt in receipts:
        for attempt in receipt["attempts"]:
            took = f"{attempt['latency_ms']:,} ms" if attempt["latency_ms"] is not None else "–"
            outcome = _state(attempt["outcome"])
            if "error" in attempt:
                outcome.append(f" {printing.clean(attempt['error']['code'])}")
            table.add_row(
                printing.clean(receipt["model"]), str(attempt["run"]), printing.clean(attempt["provider"]), outcome,
                took, *([printing.dollars(attempt.get("cost_micro_usd")) or "–"] if costs else []),
                printing.clean(attempt["rule"]),
            )  # fmt: skip
    return table


def _webhooks(receipts: Sequence[Receipt]) -> Table:
    table = _table("Webhooks")
    for name in ("event", "delivery", "status", "tries"):
        table.add_column(name, no_wrap=True)
    for receipt in receipts:
        for sent in receipt["webhooks"]:
            tries = ", ".join(
                a["outcome"] + (f" {a['status']}" if a["status"] is not None else "") for a in sent["attempts"]
            )
            table.add_row(printing.clean(sent["event"]), str(sent["delivery_id"]), _state(sent["status"]), tries or "–")
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"), title_justify="left", box=box.ROUNDED, border_style="dim",
        header_style="dim", pad_edge=True,
    )  # fmt: skip


def _state(word: str) -> Text:
    return Text(word, style=COLOURS.get(word, ""))


def _amount(text: str | None) -> Text:
    return Text("–", style="dim") if text is None else Text(f"{Decimal(text).normalize():,f}")


def _moments(receipts: Sequence[Receipt]) -> list[tuple[str, str, str]]:
    """(when, the id, the balance after) of every movement, in order."""
    return sorted((str(t["at"]), str(t["id"]), t["balance_after"]) for r in receipts for t in r["transfers"])


def _first(receipts: Sequence[Receipt]) -> str:
    """The balance before any of them: of the one whose hold came first."""
    return str(min(receipts, key=lambda r: str(r["created_at"]))["credits"]["before"])


def _last(receipts: Sequence[Receipt]) -> str | None:
    moments = _moments(receipts)
    return moments[-1][2] if moments else None
