"""The worker's composition root: settings → resources → the loop and its duties."""

import asyncio
import contextlib
import signal

from prometheus_client import start_http_server

from limner.db.pools import Address, Database
from limner.hub import chores as hub_chores
from limner.hub import executor
from limner.hub.loop import LoopSettings, WorkerLoop
from limner.hub.providers.base import Adapter
from limner.hub.providers.local.adapter import LocalAdapter
from limner.kit.cpu import CpuPool
from limner.kit.crypto import RootKey
from limner.media.store import ObjectStore
from limner.settings import Settings
from limner.tasks import chores
from limner.telemetry import logs

ROLES = ("limner_dispatch", "limner_worker", "limner_audit", "limner_operator")
CLOCK_EVERY_S = 30.0
log = logs.get("worker")


async def run(settings: Settings, root: RootKey, address: Address) -> None:
    """Work until SIGTERM or SIGINT; returns within the shutdown time after it."""
    pool = CpuPool(settings.cpu_processes, settings.cpu_memory_bytes, settings.cpu_time_limit_s)
    store = ObjectStore(settings.store_url, settings.home)
    adapters: dict[str, Adapter] = {adapter.name: adapter for adapter in (LocalAdapter(pool),)}
    db = Database(address, root, ROLES, size=settings.database_pool_size)
    await db.open()
    resources = executor.Resources(db, adapters, store, pool, settings.max_runs, settings.retry_backoff_s)
    loop = WorkerLoop(
        resources,
        LoopSettings(settings.worker_slots, settings.lease_s, settings.heartbeat_s, settings.shutdown_s),
    )
    hub = hub_chores.HubChores(db, store, settings.loser_sweep_after_s)
    duties = [
        chores.Chore("check_books", hub_chores.CHECK_EVERY_S, hub.check_books),
        chores.Chore("sweep_losers", hub_chores.SWEEP_EVERY_S, hub.sweep_losers),
    ]
    running = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(signum, loop.stop)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.host)
    background = [asyncio.create_task(chores.run_forever(db, duties)), asyncio.create_task(_keep_time(db))]
    try:
        await loop.run()
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await pool.aclose()
        await db.close()


async def _keep_time(db: Database) -> None:
    while True:
        await asyncio.sleep(CLOCK_EVERY_S)
        with contextlib.suppress(Exception):  # the offset of the last reading stays good meanwhile
            await db.sync_clock()
