"""The worker's composition root: settings → resources → the loop and its duties."""

import asyncio
import contextlib
import os
import signal
import threading

from prometheus_client import start_http_server

from limner.db.pools import Address, Database
from limner.egress import doors
from limner.hub import chores as hub_chores
from limner.hub import executor, retention
from limner.hub.loop import LoopSettings, WorkerLoop
from limner.hub.providers.base import Adapter
from limner.hub.providers.local.adapter import LocalAdapter
from limner.hub.providers.openai_compatible.adapter import OpenAICompatibleAdapter
from limner.kit.cpu import CpuPool
from limner.kit.crypto import RootKey
from limner.ledger import chores as ledger_chores
from limner.media.store import ObjectStore
from limner.settings import Settings
from limner.tasks import chores
from limner.telemetry import logs

ROLES = ("limner_dispatch", "limner_worker", "limner_audit", "limner_operator")
CLOSE_S = 3.0
LEFT_BY_FORCE = 1
log = logs.get("worker")


async def run(settings: Settings, root: RootKey, address: Address) -> None:
    """Work until SIGTERM or SIGINT; returns within the shutdown time after it."""
    pool = CpuPool(settings.cpu_processes, settings.cpu_memory_bytes, settings.cpu_time_limit_s)
    store = ObjectStore(settings.store_url, settings.home)
    door = doors.fixed(settings)
    known: tuple[Adapter, ...] = (LocalAdapter(pool), OpenAICompatibleAdapter(door))
    adapters = {adapter.name: adapter for adapter in known}
    db = Database(address, root, ROLES, size=settings.database_pool_size)
    await db.open()
    resources = executor.resources(db, adapters, store, pool, settings.max_runs, settings.retry_backoff_s)
    loop = WorkerLoop(
        resources,
        LoopSettings(
            settings.worker_slots,
            settings.lease_s,
            settings.heartbeat_s,
            settings.shutdown_s,
            settings.org_max_running or None,
        ),
    )
    hub = hub_chores.HubChores(db, store, settings.loser_sweep_after_s)
    kept = retention.Retention(db, store, settings.keep_days, settings.keep_jobs)
    duties = [
        chores.Chore("check_books", hub_chores.CHECK_EVERY_S, hub.check_books),
        chores.Chore("check_whole_book", hub_chores.WHOLE_BOOK_EVERY_S, hub.check_whole_book),
        chores.Chore("sweep_losers", hub_chores.SWEEP_EVERY_S, hub.sweep_losers),
        *ledger_chores.LedgerChores(db).all(),
        chores.Chore("erase_old", retention.ERASE_EVERY_S, kept.erase_old),
    ]

    def stop() -> None:
        loop.stop()
        _leave_by(settings.shutdown_s)

    running = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(signum, stop)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.host)
    background = [asyncio.create_task(chores.run_forever(db, duties)), asyncio.create_task(db.keep_time())]
    try:
        await loop.run()
    finally:
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=CLOSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await door.aclose()
                await pool.aclose()
        await db.close()


def _leave_by(seconds: float) -> None:
    """End the process at that time whatever still hangs: leases run out by themselves, a worker that stays does not."""

    def leave() -> None:
        log.error("worker.forced", after_s=seconds)
        os._exit(LEFT_BY_FORCE)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
