"""`limner api` and `limner worker`: one process each, any number of them over one database."""

import os
import signal
import threading
import time

import psycopg
import typer
import uvicorn
import uvloop

from limner import app as api_app
from limner import worker as worker_app
from limner.cli import session
from limner.db.pools import DatabaseUnavailable
from limner.telemetry import logs
from limner.web.wire import BoundedHead

SUPERVISOR = "LIMNER_SUPERVISOR_PID"


def api(
    host: str | None = typer.Option(None, help="Address to listen on (LIMNER_HOST)."),
    port: int | None = typer.Option(None, help="Port to listen on (LIMNER_PORT)."),
) -> None:
    """Serve the API."""
    config = session.settings()
    config = config.model_copy(update={k: v for k, v in {"host": host, "port": port}.items() if v is not None})
    root = session.root_key(config)
    logs.configure(config.log_level, process="api")
    with session.postgres(config) as url:
        session.refuse_unsafe(url, root, api_app.ROLES)
        _leave_with_supervisor()
        application = api_app.build(config, root, session.address(config, url))
        server = uvicorn.Server(
            uvicorn.Config(
                application, host=config.host, port=config.port, log_config=None, access_log=False, loop="uvloop",
                http=BoundedHead, server_header=False, timeout_graceful_shutdown=int(config.shutdown_s),
                proxy_headers=False, lifespan="on",
            )
        )  # fmt: skip
        try:
            uvloop.run(server.serve())
        except DatabaseUnavailable as error:
            session.fail(f"the database cannot be reached: {error}")
        if not server.started:
            raise typer.Exit(1)


def worker() -> None:
    """Work on jobs until told to stop."""
    config = session.settings()
    root = session.root_key(config)
    logs.configure(config.log_level, process="worker")
    with session.postgres(config) as url:
        session.refuse_unsafe(url, root, worker_app.ROLES)
        _leave_with_supervisor()
        try:
            uvloop.run(worker_app.run(config, root, session.address(config, url)))
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            session.fail(f"the database cannot be reached: {error}")


def _leave_with_supervisor() -> None:
    """Under `limner up`: stop when it is gone, however it went, so that nothing is left running."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="supervisor-watch").start()
