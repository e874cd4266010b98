"""The `limner` command. Each noun's module is loaded when the noun is named, so that `limner --help` answers at once."""

import gc
import importlib
import signal
from collections.abc import Iterator, MutableMapping
from importlib import metadata
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:  # loaded by name, below
    from limner.cli import (  # noqa: F401
        apps,
        batches,
        db,
        demo,
        doctor,
        events,
        invariants,
        jobs,
        keys,
        ledger,
        models,
        orgs,
        proofread,
        providers_health,
        queue,
        routes,
        serve,
        up,
        uploads,
        usage,
        users,
        webhooks,
        work,
    )

NOUNS: dict[str, tuple[str, str]] = {
    "up": ("limner.cli.up:app", "Start everything, keep it running until SIGTERM or Ctrl-C."),
    "demo": ("limner.cli.demo:app", "Take a photograph through the whole product, down to the receipt."),
    "doctor": ("limner.cli.doctor:app", "Check this installation, and say how to fix what is wrong."),
    "api": ("limner.cli.serve:command", "Serve the API."),
    "worker": ("limner.cli.work:command", "Work on jobs until told to stop."),
    "db": ("limner.cli.db:app", "The database: migrate, check, lint, psql, pgbouncer."),
    "org": ("limner.cli.orgs:app", "Organizations: the tenants, their credits and their audit log."),
    "app": ("limner.cli.apps:app", "Apps: an organization's API clients."),
    "key": ("limner.cli.keys:app", "API keys: create, list, rotate, revoke."),
    "user": ("limner.cli.users:app", "End users: the people inside an app."),
    "ledger": ("limner.cli.ledger:app", "Statements and refunds."),
    "usage": ("limner.cli.usage:app", "What was used, what it was charged, and what it cost."),
    "invariants": ("limner.cli.invariants:app", "Check the books: exit 1 on any violation."),
    "queue": ("limner.cli.queue:app", "The queue: who waits, who runs; pause, resume, drain."),
    "jobs": ("limner.cli.jobs:app", "Jobs: list, show, receipt, cancel."),
    "batch": ("limner.cli.batches:app", "Batches: many jobs by one request; submit, list, show, items, cancel."),
    "uploads": ("limner.cli.uploads:app", "Uploads: list, show, delete."),
    "models": ("limner.cli.models:app", "Models: what is sold, at what price."),
    "providers": ("limner.cli.providers_health:app", "Providers: who runs the models."),
    "routes": ("limner.cli.routes:app", "Routes: which provider serves which model, in what order."),
    "check": ("limner.cli.proofread:app", "Check a text: grammar, spelling, style; works offline."),
    "webhooks": ("limner.cli.webhooks:app", "Webhooks: where apps hear of their events, and what was sent."),
    "events": ("limner.cli.events:app", "The catalogue of events: types and what each means."),
}


class _OnDemand(MutableMapping[str, Any]):
    """Commands by name; looking one up imports its module."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module, _, attribute = NOUNS[name][0].partition(":")
            gc.disable()  # what is loaded stays: looking for what could go costs a seventh of the time
            try:
                command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
            finally:
                gc.enable()
            command.name = name
            self._loaded[name] = command
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(NOUNS)

    def __len__(self) -> int:
        return len(NOUNS)


class Nouns(TyperGroup):
    """The root group: its own help page needs no noun's module."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _OnDemand()
        self.rich_markup_mode = None  # wrong usage is told in plain lines: a box would cut the message at 80 columns

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = "rich"
        self.commands = {name: TyperCommand(name, help=words) for name, (_, words) in NOUNS.items()}
        super().format_help(ctx, formatter)


app = typer.Typer(name="limner", cls=Nouns, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Words and pictures from a prompt, with the money right.")  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"limner {metadata.version('limner')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Words and pictures from a prompt, with the money right."""


def main() -> None:
    """Console-script entry. SIGTERM unwinds as Ctrl-C does: what a command started, it stops."""
    signal.signal(signal.SIGTERM, _leave)
    app()


def _leave(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
