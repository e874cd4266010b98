"""`limner api` and `limner worker`: one process each, any number of them over one database."""

import gc
import math
import os
import resource
import signal
import socket
import threading
import time
from typing import Annotated

import psycopg
import typer
import uvicorn
import uvloop
from fastapi import FastAPI

from limner import app as api_app
from limner import worker as worker_app
from limner.cli import listening, printing, session
from limner.db.pools import DatabaseUnavailable
from limner.hub.providers import registry
from limner.settings import Settings
from limner.telemetry import logs
from limner.web import wire

OTHER_DESCRIPTORS = 512
"""For the database, the store, child processes and files, beside the connections of clients."""
LEAVE_WITHIN_S = 10.0  # beyond the shutdown time: then the process is stuck, and ends without ceremony

api_command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
worker_command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@api_command.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on (LIMNER_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on (LIMNER_PORT).")] = None,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C."""
    config = session.settings()
    config = config.model_copy(update={k: v for k, v in {"host": host, "port": port}.items() if v is not None})
    root = session.root_key(config)
    logs.configure(config.log_level, process="api")
    _leave_with_supervisor(config)
    _load_adapters()
    with _listener(config) as listener, session.postgres(config) as url:
        config = config.model_copy(update={"port": listener.getsockname()[1]})
        session.refuse_unsafe(url, root, api_app.ROLES)
        logs.get("api").info("api.listening", host=config.host, port=config.port)
        application = api_app.build(config, root, session.address(config, url))
        gc.freeze()  # what is loaded by now stays: the collector need not look at it again
        gc.set_threshold(50_000, 20, 20)
        server = _Server(
            uvicorn.Config(
                application, log_config=None, access_log=False, loop="uvloop", http=_protocol(config), ws="none",
                server_header=False, timeout_graceful_shutdown=int(config.shutdown_s), proxy_headers=False,
                lifespan="on", timeout_keep_alive=math.ceil(config.keep_alive_s),
            )
        )  # fmt: skip
        try:
            uvloop.run(server.serve(sockets=[listener]))
        except DatabaseUnavailable as error:
            printing.fail(f"the database cannot be reached: {error}")
        except (KeyboardInterrupt, SystemExit) as leaving:
            # uvicorn sends itself the signal again once it has shut down in good order: that is success here; a start
            # that failed is told below, with limner's own exit code
            if not server.should_exit and (server.started or isinstance(leaving, KeyboardInterrupt)):
                raise
        if not server.started:
            raise typer.Exit(1)


@worker_command.command()
def worker() -> None:
    """Work on jobs until SIGTERM or Ctrl-C; what is under way is finished or given back."""
    config = session.settings()
    root = session.root_key(config)
    logs.configure(config.log_level, process="worker")
    _leave_with_supervisor(config)
    _load_adapters()
    with session.postgres(config) as url:
        session.refuse_unsafe(url, root, worker_app.ROLES)
        try:
            uvloop.run(worker_app.run(config, root, session.address(config, url)))
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            printing.fail(f"the database cannot be reached: {error}")


def _load_adapters() -> None:
    """Leave where one cannot be used: its jobs would wait for a worker that never comes."""
    try:
        registry.all_kinds()
    except registry.AdapterInvalid as error:
        printing.fail(f"refusing to start: {error}", code=3)


class _Server(uvicorn.Server):
    """Ends the streams before it waits for what is under way: they would not end by themselves."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        application = self.config.app
        assert isinstance(application, FastAPI)
        application.state.close_streams()
        await super().shutdown(sockets)


def _listener(config: Settings) -> socket.socket:
    """The supervisor's listening socket, which outlives this process; without a supervisor one of our own."""
    inherited = os.environ.get(listening.FD)
    return socket.socket(fileno=int(inherited)) if inherited else listening.listen(config.host, config.port)


def _protocol(config: Settings) -> type[wire.BoundedHttp]:
    """How connections are held to the settings."""
    limits = wire.WireLimits(
        connections=_room(config.max_connections),
        head_within_s=config.head_within_s,
        body_within_s=config.body_within_s,
        idle_within_s=config.keep_alive_s,
        send_within_s=config.send_within_s,
        discard_bytes=max(config.max_body_bytes, config.max_generate_body_bytes),
    )
    return wire.bounded(wire.Connections(limits))


def _room(connections: int) -> int:
    """As many of these connections as the system lets this process have; the soft limit of descriptors is raised for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_DESCRIPTORS
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < granted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted == wanted:
        return connections
    room = max(granted - OTHER_DESCRIPTORS, granted // 2)
    logs.get("api").warning("api.few_descriptors", descriptors=granted, max_connections=connections, room=room)
    return min(connections, room)


def _leave_with_supervisor(config: Settings) -> None:
    """Under `limner up`: stop when it is gone, however it went, so that nothing is left running."""
    supervisor = os.environ.get(listening.SUPERVISOR)
    if supervisor is None:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(config.shutdown_s + LEAVE_WITHIN_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="supervisor-watch").start()
