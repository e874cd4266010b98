"""`limner events`: what limner announces."""

import typer

from limner.cli import printing
from limner.cli.arguments import Json
from limner.hub import events

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def catalogue(as_json: Json = False) -> None:
    """The catalogue of events: types and what each means."""
    if as_json:
        printing.document({"events": [{"type": name, "meaning": words} for name, words in events.ANNOUNCED.items()]})
    else:
        printing.table(("type", "meaning"), events.ANNOUNCED.items(), empty="")
