"""A receiver of webhooks on 127.0.0.1: verifies what comes and tells of each delivery. For `limner webhooks listen` and the demo."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from limner.kit import signing

HOST = "127.0.0.1"
MAX_BYTES = 64 * 1024 * 1024
READ_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came: `type` is "?" where it is no event of limner's."""

    id: str
    type: str
    job_id: str | None
    verified: bool


@contextlib.contextmanager
def receiving(port: int, secrets: Sequence[bytes], told: Callable[[Delivered], None]) -> Iterator[None]:
    """Receive while the block lasts; `told` is called in another thread. Raises OSError when the port is taken."""
    server = _Server(port, secrets, told)
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="receiver")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, secrets: Sequence[bytes], told: Callable[[Delivered], None]) -> None:
        super().__init__((HOST, port), _Handler)
        self.secrets = secrets
        self.told = told


class _Handler(BaseHTTPRequestHandler):
    """Answers 200 to what it could verify, 400 to the rest."""

    server: _Server
    timeout = READ_WITHIN_S

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BYTES:
            self._reply(413)
            return
        body = self.rfile.read(int(length))
        sent = {name.lower(): value for name, value in self.headers.items()}
        verified = signing.verify(self.server.secrets, sent, body, time.time())
        self.server.told(_delivered(sent.get("webhook-id", ""), body, verified=verified))
        self._reply(200 if verified else 400)

    def _reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Each delivery is told of already."""


def _delivered(message_id: str, body: bytes, *, verified: bool) -> Delivered:
    try:
        event = json.loads(body)
        return Delivered(message_id, str(event["type"]), event.get("job_id"), verified)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Delivered(message_id, "?", None, verified)
