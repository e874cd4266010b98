"""The API's port: taken before anything starts."""

import errno
import socket

from limner.cli import printing

SUPERVISOR = "LIMNER_SUPERVISOR_PID"
FD = "LIMNER_LISTEN_FD"
"""What `limner up` tells its processes: who watches over them, and which descriptor is the API's socket."""

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Leaves with exit code 2 when the address cannot be had.

    `limner up` hands it to its API process: the port is known before that process exists, nobody can take it in
    between, and callers wait in its queue while a dead API process is replaced.
    """
    try:
        return try_listen(host, port)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                words = f"port {port} of {host} is taken by another program: choose one with --port or LIMNER_PORT (0: any free one)"
            case errno.EACCES:
                words = f"port {port} may not be used by this user: choose one above 1023 with --port or LIMNER_PORT"
            case _:
                words = f"cannot listen on {host}, port {port} (LIMNER_HOST, LIMNER_PORT): {error.strerror or error}"
        printing.fail(words, code=2)


def try_listen(host: str, port: int) -> socket.socket:
    """As `listen`; raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def free_port(wanted: int) -> int:
    """A port of 127.0.0.1 that is free now: `wanted` if it is, else any."""
    try:
        found = try_listen("127.0.0.1", wanted)
    except OSError:
        found = listen("127.0.0.1", 0)
    with found:
        return int(found.getsockname()[1])


def local_url(host: str, port: int) -> str:
    """How this machine reaches an API that listens on `host`, which may mean every address."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  (not bound here)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
