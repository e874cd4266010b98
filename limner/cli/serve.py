"""`limner api`: one process, any number of them over one database."""

import gc
import math
import os
import resource
import socket
from typing import Annotated

import typer
import uvicorn
import uvloop
from fastapi import FastAPI

from limner import app as api_app
from limner.cli import listening, printing, session, starting
from limner.db.pools import DatabaseUnavailable
from limner.settings import Settings
from limner.telemetry import logs
from limner.web import wire

OTHER_DESCRIPTORS = 512
"""For the database, the store, child processes and files, beside the connections of clients."""

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on (LIMNER_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on (LIMNER_PORT).")] = None,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C."""
    config = session.settings()
    config = config.model_copy(update={k: v for k, v in {"host": host, "port": port}.items() if v is not None})
    root = session.root_key(config)
    logs.configure(config.log_level, process="api")
    starting.leave_with_supervisor(config)
    starting.load_adapters()
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
        # cut off a few bytes over its limit, a body's client would read a reset connection instead of the answer
        discard_bytes=2 * max(config.max_body_bytes, config.max_generate_body_bytes),
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
