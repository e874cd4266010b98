"""The worker's composition root: settings → resources → the loop and its duties."""

import asyncio
import contextlib
import os
import signal
import threading

from prometheus_client import start_http_server

from limner.db.pools import Address, Database
from limner.db.wake import Herald
from limner.egress import doors
from limner.events import endpoints, forgetting
from limner.events.delivering import DeliveryLoop, DeliverySettings
from limner.events.relay import Relay
from limner.hub import chores as hub_chores
from limner.hub import executor, gates, resealing, retention, usage_rolling, webhook_bodies
from limner.hub.batch_tending import BatchTending
from limner.hub.hooks import Hooks
from limner.hub.imports import Imports
from limner.hub.loop import LoopSettings, WorkerLoop
from limner.hub.progress import News
from limner.hub.providers import registry
from limner.hub.providers.kinds import Tools
from limner.kit.cpu import CpuPool
from limner.kit.crypto import RootKey, Sealer
from limner.ledger import chores as ledger_chores
from limner.media import tending
from limner.media.audio import AudioLimits, Recordings
from limner.media.processing import Processor
from limner.media.sandbox import Sandbox
from limner.media.sniffing import ImageLimits
from limner.media.store import ObjectStore
from limner.media.uploads import Quota
from limner.media.urls import MediaUrls
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
    door = doors.fixed(settings, root)
    db = Database(address, root, ROLES, size=settings.database_pool_size)
    adapters = registry.adapters(Tools(door, pool, db.clock, doors.untrusted(settings)))
    await db.open()
    herald = Herald(db, "limner_dispatch")
    delivering = _delivering(settings, root, db)

    def placed() -> None:
        delivering.wake()
        tending_batches.wake()

    relay = Relay(db, herald, placed)
    tending_batches = BatchTending(db, relay.wake)
    hooks = Hooks(root, settings.public_url)
    resources = executor.resources(
        db, adapters, store, pool, settings.max_runs, settings.retry_backoff_s, _imports(settings, pool),
        News(relay.wake, herald.tell),
        breaker=gates.breaker(settings), hooks=hooks,
    )  # fmt: skip
    limits = LoopSettings(
        settings.worker_slots,
        settings.lease_s,
        settings.heartbeat_s,
        settings.shutdown_s,
        settings.org_max_running or None,
    )
    loop = WorkerLoop(resources, limits)
    duties = _duties(settings, root, db, store, pool)

    def stop() -> None:
        loop.stop()
        delivering.stop()
        _leave_by(settings.shutdown_s)

    running = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(signum, stop)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.host)
    background = [
        asyncio.create_task(work)
        for work in (
            chores.run_forever(db, duties),
            db.keep_time(),
            relay.run(),
            herald.run(),
            resources.gates.keep(),
            tending_batches.run(),
        )
    ]
    if hooks.offered:
        background.append(asyncio.create_task(hooks.listen(db)))
    sending = asyncio.create_task(delivering.run())
    try:
        await loop.run()
        await sending  # stopped with the loop: it ends by itself
    finally:
        background.append(sending)
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=CLOSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await door.aclose()
                await pool.aclose()
        await db.close()


def _duties(settings: Settings, root: RootKey, db: Database, store: ObjectStore, pool: CpuPool) -> list[chores.Chore]:
    resealing_old = chores.Chore("reseal_old", resealing.EVERY_S, resealing.Resealing(db, root).reseal_old)
    hub = hub_chores.HubChores(db, store, settings.loser_sweep_after_s)
    deliveries = forgetting.Forgetting(db, settings.keep_deliveries_days)
    kept = retention.Retention(db, store, settings.keep_days, settings.keep_jobs)
    return [
        chores.Chore("check_books", hub_chores.CHECK_EVERY_S, hub.check_books),
        chores.Chore("check_whole_book", hub_chores.WHOLE_BOOK_EVERY_S, hub.check_whole_book),
        chores.Chore("sweep_losers", hub_chores.SWEEP_EVERY_S, hub.sweep_losers),
        *ledger_chores.LedgerChores(db).all(),
        chores.Chore("roll_usage", usage_rolling.EVERY_S, usage_rolling.UsageRolling(db).roll),
        chores.Chore("erase_old", retention.ERASE_EVERY_S, kept.erase_old),
        chores.Chore("forget_deliveries", forgetting.FORGET_EVERY_S, deliveries.forget_deliveries),
        chores.Chore("tend_uploads", tending.EVERY_S, _uploads(db, store, settings, pool).tend),
        *([resealing_old] if root.old else []),
    ]


def _delivering(settings: Settings, root: RootKey, db: Database) -> DeliveryLoop:
    """Webhooks: bodies are the hub's, the way out is the door for addresses that nobody vouches for."""
    bodies = webhook_bodies.Bodies(MediaUrls(root, db.clock, settings.base_url, webhook_bodies.URL_LIFE_S))
    limits = DeliverySettings(
        settings.webhook_slots, settings.webhook_endpoint_slots, settings.webhook_off_after_s, settings.shutdown_s / 3
    )
    return DeliveryLoop(db, doors.untrusted(settings), Sealer(root, endpoints.PURPOSE), bodies.compose, limits)


def _imports(settings: Settings, pool: CpuPool) -> Imports:
    recordings = Recordings(pool, AudioLimits.of(settings))
    return Imports(doors.untrusted(settings), pool, ImageLimits.of(settings), recordings)


def _uploads(db: Database, store: ObjectStore, settings: Settings, pool: CpuPool) -> tending.UploadTending:
    quota = Quota(settings.upload_quota_bytes, settings.upload_quota_files)
    processor = Processor(
        db, tending.ROLE, store, Sandbox(), ImageLimits.of(settings), quota, Recordings(pool, AudioLimits.of(settings))
    )
    return tending.UploadTending(db, store, processor)


def _leave_by(seconds: float) -> None:
    """End the process at that time whatever still hangs: leases run out by themselves, a worker that stays does not."""

    def leave() -> None:
        log.error("worker.forced", after_s=seconds)
        os._exit(LEFT_BY_FORCE)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
