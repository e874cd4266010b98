"""The receiver of `limner webhooks listen`: on 127.0.0.1, verifies what comes and prints a line for each delivery."""

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from limner.cli import printing, session
from limner.db.pools import Database
from limner.egress import destinations
from limner.egress.answers import EgressError
from limner.events import endpoints
from limner.events.endpoints import Endpoint
from limner.kit import signing
from limner.kit.crypto import Sealer
from limner.settings import Settings
from limner.tenancy import apps

HOST = "127.0.0.1"
MAX_BYTES = 64 * 1024 * 1024
READ_WITHIN_S = 15.0
DESCRIPTION = "limner webhooks listen"


class NotAllowed(ValueError):
    """Workers would refuse to send to this machine; the message says what to set."""


@dataclass(frozen=True, slots=True)
class Listening:
    """What the command was asked; `work` does it."""

    org: str
    app: str
    event_types: Sequence[str]
    port: int
    config: Settings
    sealer: Sealer
    as_json: bool

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def work(self, db: Database) -> None:
        """Until cancelled. Raises NotAllowed, and OSError when the port is taken."""
        try:
            destinations.of(self.config).check(f"{self.origin}/")
        except EgressError:
            raise NotAllowed(
                f"workers send nothing to {self.origin}: set LIMNER_EGRESS_ALLOW_ORIGINS={self.origin} (with what it holds"
                " already, separated by commas) for them and for this command, and start them again"
            ) from None
        with _serving(self) as receiver:
            async with self._registered(db) as secrets:
                receiver.secrets = secrets
                printing.note(f"listening on {self.origin} for {self.app} of {self.org}; Ctrl-C ends it")
                await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def _registered(self, db: Database) -> AsyncIterator[list[bytes]]:
        """A webhook for the time of this command; every secret that may sign what comes: its own and the app's."""
        async with session.operator_tx(db, self.org) as tx:
            app_id = (await apps.get(tx, self.app)).id
            own = await endpoints.ensure_default(tx, self.sealer, app_id)
            for left_over in await endpoints.list_of_app(tx, app_id):
                if left_over.url == f"{self.origin}/":  # of a listener that was killed
                    await endpoints.remove(tx, left_over)
            made = await endpoints.create(
                tx, self.sealer, app_id, f"{self.origin}/", most=self.config.webhooks_per_app + 1, description=DESCRIPTION,
                event_types=list(self.event_types),
            )  # fmt: skip
            keys = [await endpoints.keys(tx, self.sealer, one.id) for one in (made, own)]
        try:
            yield [secret for one in keys for secret in one.secrets]
        finally:
            await self._forget(db, made)

    async def _forget(self, db: Database, made: Endpoint) -> None:
        async with session.operator_tx(db, self.org) as tx:
            await endpoints.remove(tx, made)


class _Receiver(ThreadingHTTPServer):
    """`secrets`: whose signatures count."""

    daemon_threads = True

    def __init__(self, port: int, as_json: bool) -> None:
        super().__init__((HOST, port), _Handler)
        self.as_json = as_json
        self.secrets: list[bytes] = []


class _Handler(BaseHTTPRequestHandler):
    """Answers 200 to what it could verify, 400 to the rest."""

    server: _Receiver
    timeout = READ_WITHIN_S

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BYTES:
            self._reply(413)
            return
        body = self.rfile.read(int(length))
        sent = {name.lower(): value for name, value in self.headers.items()}
        verified = signing.verify(self.server.secrets, sent, body, time.time())
        _print(sent.get("webhook-id", ""), body, verified, self.server.as_json)
        self._reply(200 if verified else 400)

    def _reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Each delivery has its line already."""


@contextlib.contextmanager
def _serving(listening: Listening) -> Iterator[_Receiver]:
    try:
        receiver = _Receiver(listening.port, listening.as_json)
    except OSError as error:
        printing.fail(f"cannot listen on {listening.origin}: {error.strerror}; choose another port with --port", code=2)
    thread = threading.Thread(target=receiver.serve_forever, daemon=True, name="receiver")
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()


def _print(message_id: str, body: bytes, verified: bool, as_json: bool) -> None:
    """Id, type, job, verified yes or no."""
    try:
        told = json.loads(body)
        type_, job = str(told["type"]), told.get("job_id")
    except (ValueError, KeyError, TypeError, AttributeError):
        type_, job = "?", None
    if as_json:
        print(json.dumps({"id": message_id, "type": type_, "job_id": job, "verified": verified}), flush=True)
        return
    yes = "yes" if verified else "NO"
    printing.say(f"{message_id}  {type_}  job {job or '–'}  verified {yes}")
    sys.stdout.flush()
