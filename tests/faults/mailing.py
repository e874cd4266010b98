"""A worker that delivers webhooks, one at a time, and is killed (SIGKILL) in one window around its first."""

import os
import signal
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from limner.cli import work
from limner.db.tx import Tx
from limner.egress.untrusted import UntrustedDoor
from limner.events import deliveries, delivering, relay
from limner.events.deliveries import Ended, Lease, Order
from limner.events.delivering import DeliveryLoop
from limner.hub.loop import WorkerLoop
from tests.emulators.receiver import SENDER
from tests.faults import crash

Window = Literal["owed", "claimed", "asked", "answered", "recorded"]
"""The event is committed, the relay's commit is not sent; claimed, nothing sent; the receiver has the request, no answer; the answer is
here, nothing recorded; recorded, and nothing known of it."""
WINDOWS: tuple[Window, ...] = get_args(Window)


@dataclass(frozen=True)
class Plan:
    """A worker that dies in `window`; None: it lives."""

    base: crash.Plan
    window: Window | None


@dataclass(frozen=True)
class Doomed:
    plan: Plan
    process: ForkServerProcess

    @property
    def ready(self) -> bool:
        return self.plan.base.log.exists() and "worker.ready" in self.plan.base.log.read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def begin(home: Path, url: str, receiver_url: str, window: Window | None) -> Doomed:
    env = {
        "LIMNER_DATABASE_URL": url,
        "LIMNER_DATABASE_POOL_SIZE": "4",
        "LIMNER_WORKER_SLOTS": "1",
        "LIMNER_WEBHOOK_SLOTS": "1" if window else "16",
        "LIMNER_WEBHOOK_ENDPOINT_SLOTS": "10000",  # the dead keep their places until all are dead
        "LIMNER_EGRESS_ALLOW_ORIGINS": receiver_url,
    }
    base = crash.Plan("worker", home, home / "log" / f"mailing-{uuid4().hex[:12]}", env=tuple(env.items()))
    plan = Plan(base, window)
    return Doomed(plan, crash.fork(_main, plan))


def _main(plan: Plan) -> None:
    crash.enter(plan.base)
    crash.idle(webhooks=True)
    _bend(plan.window)
    work.worker()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _bend(window: Window | None) -> None:
    find_order, end, post, find = deliveries.find_order, deliveries.end, UntrustedDoor.post, Tx.find

    async def found(tx: Tx, lease: Lease) -> Order | None:
        if window == "claimed":
            _die()
        return await find_order(tx, lease)

    async def posted(door: UntrustedDoor, url: str, *, headers: Any, body: bytes) -> Any:
        if window == "asked":
            headers = {**headers, SENDER: str(os.getpid())}
        answer = await post(door, url, headers=headers, body=body)
        if window == "answered":
            _die()
        return answer

    async def ended(tx: Tx, lease: Lease, how: Ended, off_after_s: float) -> str:
        said = await end(tx, lease, how, off_after_s)
        if window == "recorded":
            _die()
        return said

    async def nothing(*_: Any) -> list[Any]:
        return []

    async def asked(tx: Tx, query: str, params: Any = None) -> Any:
        row = await find(tx, query, params)
        if window == "owed" and "relay_events" in query and row and row["placed"]:
            _die()  # before the commit: neither the order nor what is owed is written
        return row

    # nobody wakes these: the jobs end elsewhere; and it is the one that is to die over it that places most
    crash.vars_of(relay, POLL_S=0.02 if window == "owed" else 0.2)
    crash.vars_of(delivering, POLL_S=0.05)
    crash.vars_of(deliveries, find_order=found, end=ended)
    crash.vars_of(UntrustedDoor, post=posted)
    crash.vars_of(Tx, find=asked)
    crash.vars_of(WorkerLoop, _claim=nothing)  # jobs are the test's
    if window == "owed":  # it dies before it has sent anything
        crash.vars_of(DeliveryLoop, _claim=nothing)
