"""The receiver of `limner webhooks listen`: on 127.0.0.1, verifies what comes and prints a line for each delivery."""

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from limner.cli import printing, session
from limner.cli.receiver import HOST, Delivered, receiving
from limner.db.pools import Database
from limner.egress import destinations
from limner.egress.answers import EgressError
from limner.events import endpoints
from limner.events.endpoints import Endpoint
from limner.kit.crypto import Sealer
from limner.settings import Settings
from limner.tenancy import apps

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
        """Until cancelled. Raises NotAllowed; leaves with exit code 2 when the port is taken."""
        try:
            destinations.of(self.config).check(f"{self.origin}/")
        except EgressError:
            raise NotAllowed(
                f"workers send nothing to {self.origin}: set LIMNER_EGRESS_ALLOW_ORIGINS={self.origin} (with what it holds"
                " already, separated by commas) for them and for this command, and start them again"
            ) from None
        secrets: list[bytes] = []
        try:
            with receiving(self.port, secrets, functools.partial(_told, as_json=self.as_json)):
                async with self._registered(db) as known:
                    secrets += known
                    printing.note(f"listening on {self.origin} for {self.app} of {self.org}; Ctrl-C ends it")
                    await asyncio.Event().wait()
        except OSError as error:
            printing.fail(f"cannot listen on {self.origin}: {error.strerror}; choose another port with --port", code=2)

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


def _told(delivered: Delivered, *, as_json: bool) -> None:
    """Id, type, job, verified yes or no."""
    if as_json:
        facts = {"id": delivered.id, "type": delivered.type, "job_id": delivered.job_id, "verified": delivered.verified}
        print(json.dumps(facts), flush=True)
        return
    yes = "yes" if delivered.verified else "NO"
    printing.say(f"{delivered.id}  {delivered.type}  job {delivered.job_id or '–'}  verified {yes}")
    sys.stdout.flush()
