"""`limner up`: PostgreSQL, migrations, API and workers with one command; what dies is started again."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from limner.cli import printing, session, supervisor
from limner.cli.supervisor import Facts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

TICK_S = 0.2
FIRST_REQUEST = '{"model": "local/canvas", "input": {"prompt": "A quiet harbour at sunset"}}'


@app.command()
def up(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON when ready, and nothing else.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the API; 0 picks a free one (LIMNER_PORT).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
) -> None:
    """Start everything, print where to look, keep it running until SIGTERM or Ctrl-C."""
    config = session.settings()
    if port is not None:
        config = config.model_copy(update={"port": port})
    stop = supervisor.StopRequest()
    stop.install()
    try:
        with supervisor.started(config, workers, stop) as instance:
            _announce(instance.facts, as_json=as_json)
            while not stop.count:
                instance.tend()
                time.sleep(TICK_S)
    except supervisor.Stopped:
        printing.note("limner: stopped before everything had started")


def _announce(facts: Facts, *, as_json: bool) -> None:
    if as_json:
        shown = {name: value for name, value in asdict(facts).items() if name != "local_url"}
        print(json.dumps(shown), flush=True)
        return
    printing.console().print(f"""[bold green]limner is up[/] at [bold]{escape(facts.base_url)}[/]

  API reference   {escape(facts.base_url)}/docs
  Metrics         {escape(facts.base_url)}/metrics
  Logs and data   {escape(facts.home)}
""", soft_wrap=True)  # fmt: skip
    if facts.api_key is not None and facts.end_user is not None:
        printing.console().print(f"""A first request, as the end user [bold]{escape(facts.end_user)}[/] of the demo app:

  curl -s {escape(facts.base_url)}/api/v1/generate \\
    -H 'X-API-Key: {facts.api_key}' -H 'X-User-ID: {escape(facts.end_user)}' \\
    -H 'Content-Type: application/json' -d '{escape(FIRST_REQUEST)}'
""", soft_wrap=True)  # fmt: skip
    printing.console().print("Ctrl-C stops everything it started.")
