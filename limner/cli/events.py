"""`limner events`: what limner announces."""

import typer

from limner.cli import printing
from limner.cli.arguments import Json
from limner.hub import events

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def catalogue(as_json: Json = False) -> None:
    """The catalogue of events: types, what each means, and the JSON Schema of what it carries (--json)."""
    declared = events.ANNOUNCED.values()
    if as_json:
        printing.document(
            {"events": [{"type": one.type, "meaning": one.meaning, "data": one.data} for one in declared]}
        )
    else:
        rows = [(one.type, one.meaning, ", ".join(one.data["properties"])) for one in declared]
        printing.table(("type", "meaning", "data"), rows, empty="")
