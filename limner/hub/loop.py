"""The worker's loop: claim what there is room for, keep the leases alive, give runs back on the way out.

Runs and heartbeat share an event loop on purpose: when something blocks it, nobody could tell its runs to stop, so
their leases must run out. The heartbeat has its own connection.
"""

import asyncio
import math
import os
import socket
import time
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import psycopg

from limner.db.pools import AWAY, Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.db.wake import CHANNEL, EVENT
from limner.hub import executor, runs
from limner.hub.endings import Ending
from limner.hub.executor import Run
from limner.hub.runs import Lease
from limner.kit import ids
from limner.ledger import refusals
from limner.telemetry import logs, metrics

ROLE = "limner_dispatch"
POLL_S = 1.0
CROWDED_POLL_S = 0.02
CLAIM_BATCH = 100
CLAIM_PAUSE_S = 0.01
CLAIM_TIMEOUT_S = 10.0
BACK_S = 120.0  # of the leases that ran out, those of so many seconds are looked for at each claim,
LOOK_EVERY_S = 60.0  # and all of them so often
SLOW_S = 0.01  # a claim that takes as long walks past many dead rows: the next ones begin behind them,
WHOLE_EVERY_S = 2.0  # for so long,
NEAR_S = 5.0  # and look for leases that ran out in so many seconds
AHEAD = 4  # pieces of CPU work a worker has waiting for each of its processes
RARELY = 0.1  # pieces of CPU work a run
REMEMBERED = 20  # runs
MISSED_BEATS = 3
GRACE_S = 10.0
RELEASE_S = 8.0
Why = Literal["cancel", "lost", "shutdown", "silent"]
log = logs.get("worker")


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Jobs at once, seconds of a lease, seconds between heartbeats, seconds to leave in, one organization's jobs at once."""

    slots: int
    lease_s: float
    heartbeat_s: float
    shutdown_s: float
    org_cap: int | None = None


@dataclass(slots=True)
class CpuUse:
    """How many pieces of CPU work a run asks for, over the last runs. `calls`: what the pool had counted at the last ending.

    Runs overlap: what is counted between two endings may be any run's, so only the mean says something, and it has no cap.
    """

    calls: int
    a_run: float = 1.0  # until it is known

    def ended(self, calls: int) -> None:
        self.a_run += (calls - self.calls - self.a_run) / REMEMBERED
        self.calls = calls


@dataclass(slots=True, eq=False)
class _Active:
    """A run in progress; `why` says why it was told to stop."""

    run: Run
    task: asyncio.Task[None] | None = None
    why: Why | None = None


class WorkerLoop:
    """`run()` until `stop()`; any number of processes may run one over one database."""

    def __init__(self, resources: executor.Resources, settings: LoopSettings) -> None:
        self._resources = resources
        self._db: Database = resources.db
        self._settings = settings
        # by job and fence: a worker may lose a job and claim it again
        self._active: dict[tuple[UUID, int], _Active] = {}
        self._cpu_use = CpuUse(resources.pool.calls)
        self._looked_at = -math.inf
        self._slow = False
        self._since: UUID | None = None
        self._since_until = -math.inf
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex[-8:]}"

    @property
    def active(self) -> int:
        """Runs in progress."""
        return len(self._active)

    def stop(self) -> None:
        """Stop claiming; `run` gives its runs back and returns within the shutdown time."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        helpers = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]
        log.info("worker.ready", owner=self.owner, slots=self._settings.slots)
        try:
            while not self._stopping.is_set():
                await self._claim_once()
            await self._leave()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers, timeout=1)

    async def _claim_once(self) -> None:
        self._wake.clear()
        room = self._room()
        claimed = await self._claim(room) if room > 0 else []
        for lease in claimed:
            self._begin(lease)
        if claimed and len(claimed) >= room:  # there is more than room for: let some places come free together
            await asyncio.sleep(CLAIM_PAUSE_S)
        elif not claimed:
            crowded = room <= 0 and len(self._active) < self._settings.slots
            await self._rest(CROWDED_POLL_S if crowded else POLL_S)

    def _room(self) -> int:
        """How many jobs to claim: up to the free slots, as long as the CPU children keep up.

        Work that waits for a child is better left in the queue, where its turn between the apps is kept, where other
        workers see it, and where its pictures cost no memory. Runs that wait for a provider do not count, and while
        hardly any run needs a child, nothing holds the claims back.
        """
        free = min(self._settings.slots - len(self._active), CLAIM_BATCH)
        if self._cpu_use.a_run < RARELY:
            return free
        waiting = self._resources.pool.waiting + sum(a.run.phase == "preparing" for a in self._active.values())
        ahead = max(AHEAD * self._resources.pool.size, 2 * AHEAD)
        return min(free, ahead - waiting)

    async def _claim(self, room: int) -> list[Lease]:
        began = time.monotonic()
        whole = self._slow and began >= self._since_until
        recent_s = NEAR_S if self._slow and not whole else BACK_S
        back_s = recent_s if began - self._looked_at < LOOK_EVERY_S else None
        try:
            async with (
                asyncio.timeout(CLAIM_TIMEOUT_S),
                self._db.system_tx(ROLE, "claims reach over organizations, ids and leases only") as tx,
            ):
                if whole:  # walks past everything once; the claim sees all that is ready
                    self._since, self._since_until = await runs.ready_since(tx), began + WHOLE_EVERY_S
                    self._slow = time.monotonic() - began > SLOW_S / 2
                since = self._since if self._slow else None
                lease_s, org_cap = self._settings.lease_s, self._settings.org_cap
                leases = await runs.claim(tx, self.owner, room, lease_s, org_cap, back_s, since)
                if since is None:
                    self._slow = time.monotonic() - began > SLOW_S
        except (DatabaseUnavailable, psycopg.Error, TimeoutError) as error:
            log.warning("claim.failed", error=str(error) or type(error).__name__)
            return []
        if back_s is None and len(leases) < room:  # else there may be more of them
            self._looked_at = began
        return leases

    def _begin(self, lease: Lease) -> None:
        if lease.run == 1:
            metrics.PICKUP_SECONDS.observe(max(lease.waited_ms, 0) / 1000)
        for other in self._active.values():
            if other.run.lease.job_id == lease.job_id:
                self._tell(other, "lost")  # this worker itself has taken the job over
        active = _Active(Run(self._resources, lease))
        self._active[lease.job_id, lease.fence] = active
        active.task = asyncio.create_task(self._guard(active), name=f"job {lease.job_id}")
        active.task.add_done_callback(lambda _: self._ended(lease))

    def _ended(self, lease: Lease) -> None:
        self._cpu_use.ended(self._resources.pool.calls)
        del self._active[lease.job_id, lease.fence]
        self._wake.set()

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _guard(self, active: _Active) -> None:
        """One run, whatever happens inside it: the job ends, is given back, or belongs to somebody else."""
        run, lease = active.run, active.run.lease
        try:
            ending = await self._decided(active)
            if ending is not None:
                await self._end(run, ending)
        except refusals.StaleLease:
            metrics.LEASES_LOST.inc()
            log.warning("lease.lost", job=lease.job_id, run=lease.run)
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.warning("run.abandoned", job=lease.job_id, error=str(error))  # the lease runs out by itself
        except Exception:
            log.exception("run.abandoned", job=lease.job_id)

    async def _decided(self, active: _Active) -> Ending | None:
        """How the run ends; None when somebody else owns the job by now."""
        run, lease = active.run, active.run.lease
        try:
            return await run.decide()
        except refusals.StaleLease:
            raise
        except asyncio.CancelledError:
            if active.why is None:
                raise  # the event loop is closing: nothing more can be written
            if active.task is not None:
                active.task.uncancel()
            log.info("run.stopped", job=lease.job_id, why=active.why)
            if active.why == "lost":
                metrics.LEASES_LOST.inc()
            return run.stopped(active.why)
        except AWAY as error:
            log.warning("run.interrupted", job=lease.job_id, error=str(error) or type(error).__name__)
            return run.without_database()
        except Exception:
            log.exception("run.crashed", job=lease.job_id, org=lease.org_id)
            return run.crashed()

    async def _end(self, run: Run, ending: Ending) -> None:
        try:
            await run.end(ending)
        except (refusals.StaleLease, *AWAY):
            raise
        except Exception:  # what the database refuses to store: the job must end all the same
            log.exception("run.crashed", job=run.lease.job_id, org=run.lease.org_id)
            await run.end(run.crashed())

    async def _beat(self) -> None:
        """Renew every lease at once; a run whose lease is gone, or whose owner cancels, is told so."""
        missed = 0
        conn: psycopg.AsyncConnection[object] | None = None
        period_s = self._settings.heartbeat_s
        next_at = time.monotonic() + period_s
        while True:
            await asyncio.sleep(max(next_at - time.monotonic(), 0))
            next_at = max(next_at + period_s, time.monotonic())
            beating = list(self._active.values())
            try:
                async with asyncio.timeout(period_s):
                    if conn is None or conn.closed:
                        conn = await self._db.direct(ROLE)
                    leases = [active.run.lease for active in beating]
                    verdicts = await runs.heartbeat(Tx(conn, None), leases, self._settings.lease_s) if leases else {}
            except Exception as error:  # nothing may end the heartbeat but the worker itself
                missed += 1
                log.warning("heartbeat.missed", times=missed, error=str(error) or type(error).__name__)
                if conn is not None:
                    await conn.close()
                if missed >= MISSED_BEATS:
                    for active in beating:
                        self._tell(active, "silent")
                continue
            missed = 0
            for active in beating:
                verdict = verdicts.get(active.run.lease.job_id, "ok")
                if verdict != "ok":
                    self._tell(active, "cancel" if verdict == "cancel" else "lost")

    def _tell(self, active: _Active, why: Why) -> None:
        """Stop a run, unless it has its result (it is settled then) or was told before."""
        if active.why is None and active.run.may_stop and active.task is not None:
            active.why = why
            active.task.cancel()

    async def _listen(self) -> None:
        """Wake the claim when a job is submitted; polling covers whatever is missed."""
        while True:
            try:
                conn = await self._db.direct(ROLE)
                async with conn:
                    await conn.execute(f"LISTEN {CHANNEL}")
                    self._wake.set()
                    async for notice in conn.notifies():
                        self._wake.set()
                        if notice.payload == EVENT:
                            self._resources.news.committed()
            except Exception as error:  # nothing may end the listening but the worker itself
                log.warning("listen.lost", error=str(error) or type(error).__name__)
            await asyncio.sleep(POLL_S)

    async def _leave(self) -> None:
        """Let what is nearly done finish; give the rest back, without counting the run."""
        log.info("worker.leaving", runs=len(self._active))
        await self._drain(min(GRACE_S, self._settings.shutdown_s / 3))
        until = time.monotonic() + min(RELEASE_S, self._settings.shutdown_s / 3)
        while self._active and time.monotonic() < until:
            for active in list(self._active.values()):
                self._tell(active, "shutdown")  # again and again: one that has its result now may be calling later
            await self._drain(0.1)
        log.info("worker.left", abandoned=len(self._active))

    async def _drain(self, seconds: float) -> None:
        tasks = [active.task for active in self._active.values() if active.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
