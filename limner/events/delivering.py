"""The delivery loop: claims what is due, sends it signed through the untrusted door, records how it went.

No transaction is open while a receiver is asked. A process that dies between sending and recording leaves a lease that runs
out: the delivery is sent again under the same id. Each worker process has one loop; endpoints share it in turn.
"""

import asyncio
import contextlib
import math
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psycopg

from limner.db.pools import AWAY, Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.egress.answers import EgressError
from limner.egress.untrusted import UntrustedDoor
from limner.events import deliveries, endpoints, schedule
from limner.events.deliveries import Ended, Lease, Order, Outcome
from limner.events.log import Event
from limner.kit import ids, signing
from limner.kit.crypto import Sealer
from limner.telemetry import logs, metrics

DISPATCH = "limner_dispatch"
WORKER = "limner_worker"
POLL_S = 1.0
BACK_S = 120.0  # of the turns that came, those of so many seconds are looked for at each claim,
LOOK_EVERY_S = 60.0  # and all of them so often
LEASE_S = 60.0  # four times the longest a receiver may take
SEND_WITHIN_S = 20.0  # the door's own limits end a try sooner
RECORD_WITHIN_S = 30.0
PAUSE_S = 0.5
USER_AGENT = "limner/1 (webhooks)"
CODES: dict[str, Outcome] = {
    "timeout": "timeout",
    "connect_failed": "connect_failed",
    "destination_not_allowed": "destination_not_allowed",
}
log = logs.get("webhooks")


@dataclass(frozen=True, slots=True)
class Message:
    """A delivery's body, and the W3C trace context of what it tells about, if it has one."""

    body: bytes
    traceparent: str | None = None


Compose = Callable[[Tx, Event], Awaitable[Message]]
"""Makes an event's body as it is now, inside the event's organization, as the worker role."""


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Deliveries at once in this process and of one endpoint; after how many seconds of nothing but failures an endpoint is
    turned off; and how long what is under way may take once the process is to end.
    """

    slots: int
    endpoint_slots: int
    off_after_s: float
    leave_s: float


@dataclass(frozen=True, slots=True)
class _Parcel:
    """Signed and addressed."""

    order: Order
    body: bytes
    headers: dict[str, str]


class DeliveryLoop:
    """`run()` until `stop()`; any number of processes may run one over one database. `wake()` when there is something new."""

    def __init__(
        self, db: Database, door: UntrustedDoor, sealer: Sealer, compose: Compose, settings: DeliverySettings
    ) -> None:
        self._db = db
        self._door = door
        self._sealer = sealer
        self._compose = compose
        self._settings = settings
        self._active: set[asyncio.Task[None]] = set()
        self._looked_at = -math.inf
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex[-8:]}"

    @property
    def active(self) -> int:
        """Deliveries under way."""
        return len(self._active)

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what is under way has ended, or after `leave_s`."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Returns at most `leave_s` after `stop`. What is under way then is left: leases run out by themselves."""
        try:
            while not self._stopping.is_set():
                try:
                    await self._claim_once()
                except Exception:  # a defect must not end the deliveries of a whole process in silence
                    log.exception("webhooks.claim_failed")
                    await asyncio.sleep(POLL_S)
            if self._active:
                await asyncio.wait(set(self._active), timeout=self._settings.leave_s)
        finally:
            for task in self._active:
                task.cancel()

    async def _claim_once(self) -> None:
        self._wake.clear()
        room = self._settings.slots - len(self._active)
        claimed = await self._claim(room) if room > 0 else []
        for lease in claimed:
            task = asyncio.create_task(self._guard(lease), name=f"delivery {lease.delivery_id}")
            self._active.add(task)
            task.add_done_callback(self._ended)
        if not claimed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._wake.set()

    async def _claim(self, room: int) -> list[Lease]:
        began = time.monotonic()
        back_s = BACK_S if began - self._looked_at < LOOK_EVERY_S else None
        try:
            async with self._db.system_tx(DISPATCH, "claims reach over organizations, ids and leases only") as tx:
                found = await deliveries.claim(tx, self.owner, room, LEASE_S, self._settings.endpoint_slots, back_s)
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.warning("webhooks.claim_failed", error=str(error) or type(error).__name__)
            return []
        if back_s is None and not found:  # else there may be more of them
            self._looked_at = began
        return found

    async def _guard(self, lease: Lease) -> None:
        """One try, whatever happens inside it."""
        try:
            await self._deliver(lease)
        except AWAY as error:  # the lease runs out by itself
            log.warning("webhook.abandoned", delivery=lease.delivery_id, error=str(error) or type(error).__name__)
        except Exception:
            log.exception("webhook.abandoned", delivery=lease.delivery_id, org=lease.org_id)

    async def _deliver(self, lease: Lease) -> None:
        try:
            parcel = await self._prepare(lease)
            if parcel is None:
                return
            if parcel.order.attempts == 0:
                lag_s = self._db.clock.now() - parcel.order.event.created_at.timestamp()
                metrics.WEBHOOK_LAG_SECONDS.observe(max(lag_s, 0.0))
            ended = await self._send(lease, parcel)
        except AWAY:
            raise
        except Exception:  # a defect of limner's or a secret that does not open: tried again, by the schedule
            log.exception("webhook.not_sent", delivery=lease.delivery_id, org=lease.org_id)
            await self._record(lease, _failure(lease, "internal_error", None, 0))
            return
        said = await self._record(lease, ended)
        event = parcel.order.event
        log.info(
            "webhook.sent", org=lease.org_id, endpoint=parcel.order.endpoint_id, delivery=lease.delivery_id, type=event.type,
            subject=event.subject_id, outcome=ended.outcome, status=ended.status, latency_ms=ended.latency_ms,
            attempt=parcel.order.attempts + 1, again_s=ended.again_s, said=said,
        )  # fmt: skip

    async def _prepare(self, lease: Lease) -> _Parcel | None:
        """The request as it is sent, made afresh for each try; None when the lease was lost or nothing is to be sent."""
        async with self._db.tenant_tx(lease.org_id, WORKER) as tx:
            order = await deliveries.find_order(tx, lease)
            if order is None:
                return None
            if order.unsigned:
                await endpoints.give_secret(tx, self._sealer, order.endpoint_id)
            keys = await endpoints.keys(tx, self._sealer, order.endpoint_id)
            message = await self._compose(tx, order.event)
        headers = signing.headers(keys, lease.delivery_id, int(self._db.clock.now()), message.body)
        headers |= {"content-type": "application/json", "user-agent": USER_AGENT}
        if message.traceparent is not None:
            headers["traceparent"] = message.traceparent
        return _Parcel(order, message.body, headers)

    async def _send(self, lease: Lease, parcel: _Parcel) -> Ended:
        began = time.monotonic()
        try:
            async with asyncio.timeout(SEND_WITHIN_S):
                answer = await self._door.post(parcel.order.url, headers=parcel.headers, body=parcel.body)
        except TimeoutError:
            return _failure(lease, "timeout", None, _since_ms(began))
        except EgressError as error:
            return _failure(lease, CODES.get(error.code, "connect_failed"), None, _since_ms(began))
        took_ms = _since_ms(began)
        status = answer.status
        if 200 <= status < 300:
            return Ended("delivered", status, took_ms, None)
        if status == 410:
            return Ended("http_4xx", status, took_ms, None, gone=True)
        pause_s = None
        if status in schedule.THROTTLED:
            pause_s = schedule.retry_after_s(answer.headers.get("retry-after"), self._db.clock.now())
        return _failure(lease, _class(status), status, took_ms, pause_s)

    async def _record(self, lease: Lease, ended: Ended) -> str:
        """Insists while the database is away, as long as the lease lives: what is not recorded is sent again."""
        until = time.monotonic() + RECORD_WITHIN_S
        while True:
            try:
                async with self._db.tenant_single(lease.org_id, WORKER) as tx:
                    said = await deliveries.end(tx, lease, ended, self._settings.off_after_s)
            except AWAY:
                if time.monotonic() >= until or self._stopping.is_set():
                    raise
                await asyncio.sleep(PAUSE_S)
            else:
                metrics.WEBHOOK_ATTEMPTS.labels(ended.outcome).inc()
                return said


def _failure(
    lease: Lease, outcome: Outcome, status: int | None, latency_ms: int, retry_after_s: float | None = None
) -> Ended:
    again_s = schedule.delay_s(lease.tries + 1, random.random(), retry_after_s)  # noqa: S311  (spreads, hides nothing)
    return Ended(outcome, status, latency_ms, again_s)


def _class(status: int) -> Outcome:
    if 300 <= status < 400:
        return "http_3xx"
    return "http_4xx" if 400 <= status < 500 else "http_5xx"


def _since_ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
