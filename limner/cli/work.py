"""`limner worker`: one process, any number of them over one database."""

import psycopg
import typer
import uvloop

from limner import worker as worker_app
from limner.cli import printing, session, starting
from limner.db.pools import DatabaseUnavailable
from limner.telemetry import logs

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def worker() -> None:
    """Work on jobs until SIGTERM or Ctrl-C; what is under way is finished or given back."""
    config = session.settings()
    root = session.root_key(config)
    logs.configure(config.log_level, process="worker")
    starting.leave_with_supervisor(config)
    starting.load_adapters()
    with session.postgres(config) as url:
        session.refuse_unsafe(url, root, worker_app.ROLES)
        try:
            uvloop.run(worker_app.run(config, root, session.address(config, url)))
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            printing.fail(f"the database cannot be reached: {error}")
