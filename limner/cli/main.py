"""The `limner` command."""

import typer

from limner.cli import serve, up

app = typer.Typer(name="limner", help="Words and pictures from a prompt, with the money right.", no_args_is_help=True,
                  add_completion=False, pretty_exceptions_enable=False)  # fmt: skip
app.command("up")(up.up)
app.command("api")(serve.api)
app.command("worker")(serve.worker)


def main() -> None:
    """Console-script entry."""
    app()
