"""`limner doctor`: looks at everything an installation needs, and says how to fix what is wrong."""

import contextlib
from typing import Annotated

import typer
from rich.text import Text

from limner.cli import checks, checks_live, printing
from limner.cli.checks import Check, CheckFailed
from limner.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Check this installation; exit 1 when something is wrong. Starts the embedded database if nobody runs it."""
    results = _examine()
    wrong = [check for check in results if not check.ok]
    if as_json:
        shown = [{"name": c.name, "ok": c.ok, "found": c.found, "fix": c.fix} for c in results]
        printing.document({"ok": not wrong, "checks": shown})
    else:
        width = max(len(check.name) for check in results)
        for check in results:
            mark = Text("✓", "green") if check.ok else Text("✗", "bold red")
            line = Text.assemble(mark, f" {check.name:<{width}}  ", printing.clean(check.found))
            printing.console().print(line, soft_wrap=True)
            if check.fix:
                printing.console().print(Text(f"  {'':<{width}}  → {check.fix}", style="yellow"), soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def _examine() -> list[Check]:
    """Every check in order; what needs a thing that failed is left out."""
    results = [checks.try_one("Python", checks.python)]
    found: list[Settings] = []
    results.append(checks.try_one("settings", lambda: checks.settings(found)))
    if not found:
        return results
    config = found[0]
    results += [
        checks.try_one("home", lambda: checks.home(config)),
        checks.try_one("disk", lambda: checks.disk(config)),
        checks.try_one("root key", lambda: checks.root_key(config)),
    ]
    if config.embedded:
        results.append(checks.try_one("PostgreSQL programs", lambda: checks.programs(config)))
    results += [
        checks.try_one("object store", lambda: checks_live.store(config)),
        checks.try_one("picture decoder", lambda: checks_live.decoder(config)),
        checks.try_one("port", lambda: checks_live.port(config)),
    ]
    if all(check.ok for check in results if check.name in {"home", "root key", "PostgreSQL programs"}):
        with contextlib.suppress(CheckFailed):
            results += checks_live.database(config)
    return results
