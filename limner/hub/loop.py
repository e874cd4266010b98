"""The worker's loop: claim what there is room for, keep the leases alive, give runs back on the way out.

The heartbeat lives on the same event loop as the runs, with a connection of its own: a blocked loop stops beating
and loses its leases, which is right, because it could not be told to stop.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.db.tx import Tx
from limner.db.wake import CHANNEL
from limner.hub import executor, runs
from limner.hub.runs import Lease
from limner.kit import ids
from limner.ledger import refusals
from limner.telemetry import logs, metrics

ROLE = "limner_dispatch"
POLL_S = 1.0
CLAIM_BATCH = 50
MISSED_BEATS = 3
RELEASE_S = 5.0
log = logs.get("worker")


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Jobs at once, seconds of a lease, seconds between heartbeats, seconds to leave in."""

    slots: int
    lease_s: float
    heartbeat_s: float
    shutdown_s: float


@dataclass(slots=True)
class _Active:
    """A run in progress; `why` says why it was told to stop: cancel, lost or shutdown."""

    lease: Lease
    task: asyncio.Task[None]
    why: str | None = None


class WorkerLoop:
    """`run()` until `stop()`; any number of processes may run one over one database."""

    def __init__(self, resources: executor.Resources, settings: LoopSettings) -> None:
        self._resources = resources
        self._db: Database = resources.db
        self._settings = settings
        self._active: dict[UUID, _Active] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex[-8:]}"

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
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _claim_once(self) -> None:
        room = min(self._settings.slots - len(self._active), CLAIM_BATCH)
        self._wake.clear()
        claimed: list[Lease] = []
        if room > 0:
            try:
                async with self._db.system_tx(ROLE, "claims reach over organizations, ids and leases only") as tx:
                    claimed = await runs.claim(tx, self.owner, room, self._settings.lease_s)
            except (DatabaseUnavailable, psycopg.Error) as error:
                log.warning("claim.failed", error=str(error))
                await asyncio.sleep(POLL_S)
        for lease in claimed:
            if lease.run == 1:
                metrics.PICKUP_SECONDS.observe(max(lease.waited_ms, 0) / 1000)
            active = _Active(lease, asyncio.create_task(self._guard(lease), name=f"job {lease.job_id}"))
            self._active[lease.job_id] = active
        if not claimed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    async def _guard(self, lease: Lease) -> None:
        """One run, whatever happens inside it: the job ends, is given back, or belongs to somebody else."""
        try:
            await executor.execute(self._resources, lease)
        except refusals.StaleLease:
            metrics.LEASES_LOST.inc()
            log.warning("lease.lost", job=lease.job_id, run=lease.run)
        except asyncio.CancelledError:
            await self._told_to_stop(lease)
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            log.warning("run.abandoned", job=lease.job_id, error=str(error))  # the lease runs out by itself
        except Exception:
            log.exception("run.crashed", job=lease.job_id, org=lease.org_id)
            await self._after_crash(lease)
        finally:
            self._active.pop(lease.job_id, None)
            self._wake.set()

    async def _told_to_stop(self, lease: Lease) -> None:
        active = self._active.get(lease.job_id)
        why = active.why if active else "lost"
        log.info("run.stopped", job=lease.job_id, why=why)
        with contextlib.suppress(refusals.StaleLease, DatabaseUnavailable, psycopg.Error):
            if why == "cancel":
                message = executor.MESSAGES["cancelled"]
                await executor.close(self._resources, lease, "cancelled", "cancelled", message)
            elif why == "shutdown":
                await executor.give_back(self._resources, lease, 0, counts=False, reason="shutdown")

    async def _after_crash(self, lease: Lease) -> None:
        with contextlib.suppress(refusals.Refused, DatabaseUnavailable, psycopg.Error):
            if lease.run >= self._resources.max_runs:
                message = "Something went wrong on our side."
                await executor.close(self._resources, lease, "failed", "internal_error", message)
            else:
                delay_s = self._resources.backoff_s * 2 ** (lease.run - 1)
                await executor.give_back(self._resources, lease, delay_s, counts=True, reason="crash")

    async def _beat(self) -> None:
        """Renew every lease at once; a run whose lease is gone, or whose owner cancels, is told so."""
        missed = 0
        conn: psycopg.AsyncConnection[object] | None = None
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            leases = [active.lease for active in self._active.values() if active.why is None]
            try:
                if conn is None or conn.closed:
                    conn = await self._db.direct(ROLE)
                async with asyncio.timeout(self._settings.heartbeat_s):
                    verdicts = await runs.heartbeat(Tx(conn, None), leases, self._settings.lease_s) if leases else {}
                missed = 0
            except (psycopg.Error, TimeoutError) as error:
                missed += 1
                log.warning("heartbeat.missed", times=missed, error=str(error) or type(error).__name__)
                if conn is not None:
                    await conn.close()
                if missed >= MISSED_BEATS:
                    for lease in leases:
                        self._tell(lease.job_id, "lost")
                continue
            for job_id, verdict in verdicts.items():
                if verdict != "ok":
                    self._tell(job_id, verdict)

    def _tell(self, job_id: UUID, why: str) -> None:
        active = self._active.get(job_id)
        if active is not None and active.why is None:
            active.why = why
            active.task.cancel()

    async def _listen(self) -> None:
        """Wake the claim when a job is submitted; polling covers whatever is missed."""
        while True:
            try:
                conn = await self._db.direct(ROLE)
                async with conn:
                    await conn.execute(f"LISTEN {CHANNEL}")
                    async for _ in conn.notifies():
                        self._wake.set()
            except psycopg.Error as error:
                log.warning("listen.lost", error=str(error))
            await asyncio.sleep(POLL_S)

    async def _leave(self) -> None:
        """Let what is nearly done finish; give the rest back, without counting the run."""
        grace_s = max(self._settings.shutdown_s / 2 - RELEASE_S, 0)
        tasks = [active.task for active in self._active.values()]
        log.info("worker.leaving", runs=len(tasks))
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for active in list(self._active.values()):
            self._tell(active.lease.job_id, "shutdown")
        remaining = [active.task for active in self._active.values()]
        if remaining:
            await asyncio.wait(remaining, timeout=RELEASE_S)
        log.info("worker.left", abandoned=len(self._active))
