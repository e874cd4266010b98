"""Providers' own webhooks: hints that there is news of a task. The truth is what the provider says when it is asked.

A hook's address names one call and is signed, so nobody else can say anything of it. It rings the bell of the run that waits; and
where the task's id was lost with a worker, it brings the id.
"""

import asyncio
import base64
import binascii
import contextlib
from dataclasses import dataclass
from uuid import UUID
from weakref import WeakValueDictionary

from limner.db import wake
from limner.db.pools import Database
from limner.hub import runs
from limner.hub.runs import Lease
from limner.kit import crypto
from limner.kit.crypto import RootKey
from limner.telemetry import logs

PREFIX = "/hooks/"
CHANNEL = "limner_hooks"
PURPOSE = "provider-hook"
ROLE = "limner_dispatch"
SIGNED_BYTES = 18
MAX_TOKEN_CHARS = 500
AGAIN_S = 1.0
AT_LEAST_S = 0.1
"""Between two questions, however often a bell rings."""
log = logs.get("hooks")


@dataclass(frozen=True, slots=True)
class Named:
    """The call that a hook is about."""

    org_id: UUID
    job_id: UUID
    step: str
    provider: str


class CallHook:
    """One call's hook, for the adapter that makes the call (providers.base.Hook)."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._bell = asyncio.Event()

    def url(self, adapter: str) -> str | None:
        """Where this adapter's provider may say that there is news; None where nobody outside reaches this installation."""
        return None if self._address is None else self._address.format(adapter=adapter)

    async def pause(self, seconds: float) -> None:
        """As long as that, or until the provider says that there is news."""
        await asyncio.sleep(min(AT_LEAST_S, seconds))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds - AT_LEAST_S, 0)):
                await self._bell.wait()
        self._bell.clear()

    def ring(self) -> None:
        self._bell.set()


class Hooks:
    """One for each process. `public_url`: this installation's address; hooks are offered where it is https."""

    def __init__(self, root: RootKey, public_url: str | None) -> None:
        self._key = root.derive(PURPOSE)
        self._public_url = public_url if public_url is not None and public_url.startswith("https://") else None
        self._waiting: WeakValueDictionary[UUID, CallHook] = WeakValueDictionary()

    @property
    def offered(self) -> bool:
        return self._public_url is not None

    def of(self, lease: Lease, step: str, provider: str) -> CallHook:
        """A call's hook; a job has one call at a time."""
        token = self._token(Named(lease.org_id, lease.job_id, step, provider))
        address = None if self._public_url is None else f"{self._public_url}{PREFIX}{{adapter}}/{token}"
        hook = self._waiting[lease.job_id] = CallHook(address)
        return hook

    def read(self, token: str) -> Named | None:
        """The call of a token; None for one that this installation did not make."""
        if len(token) > MAX_TOKEN_CHARS:
            return None
        body, _, signature = token.partition(".")
        try:
            packed = base64.b64decode(body, altchars=b"-_", validate=True)
            signed = base64.b64decode(signature, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if not crypto.same(crypto.sign(self._key, packed)[:SIGNED_BYTES], signed):
            return None
        step, _, provider = packed[32:].decode().partition("\0")
        return Named(UUID(bytes=packed[:16]), UUID(bytes=packed[16:32]), step, provider)

    async def heard(self, db: Database, named: Named, task_id: str) -> bool:
        """Write the task's id down, where the call has none, and wake whoever waits for it. Whether it was news."""
        async with db.tenant_single(named.org_id) as tx:
            adopted = await runs.adopt_task(tx, named.job_id, named.step, named.provider, task_id)
        if adopted:
            log.info("task.adopted", job=named.job_id, provider=named.provider)
        await wake.ring(
            db, ROLE, CHANNEL, named.job_id
        )  # whoever waits asks by itself, later, where this does not arrive
        return adopted

    async def listen(self, db: Database) -> None:
        """Ring the bells of this process's calls, until cancelled."""
        while True:
            try:
                async with await db.direct(ROLE) as conn:
                    await conn.execute(f"LISTEN {CHANNEL}")
                    async for notice in conn.notifies():
                        self._ring(notice.payload)
            except Exception as error:  # whoever waits asks by itself
                log.warning("listen.lost", error=str(error) or type(error).__name__)
            await asyncio.sleep(AGAIN_S)

    def _ring(self, payload: str) -> None:
        with contextlib.suppress(ValueError):
            hook = self._waiting.get(UUID(hex=payload))
            if hook is not None:
                hook.ring()

    def _token(self, named: Named) -> str:
        packed = named.org_id.bytes + named.job_id.bytes + f"{named.step}\0{named.provider}".encode()
        signature = crypto.sign(self._key, packed)[:SIGNED_BYTES]
        return f"{base64.urlsafe_b64encode(packed).decode()}.{base64.urlsafe_b64encode(signature).decode()}"
