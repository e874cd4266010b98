"""A worker's duty: uploads that nobody came back for, processes that died, and what is left in the store of what has ended."""

import asyncio
from datetime import datetime
from uuid import UUID

from limner.db.pools import Database
from limner.media import uploads
from limner.media.processing import Processor
from limner.media.sandbox import SandboxBusy
from limner.media.store import ObjectStore, StoreUnavailable
from limner.media.uploads import Upload
from limner.tasks.chores import Done
from limner.telemetry import logs

EVERY_S = 15.0
BATCH = 200
ROLE = "limner_worker"
log = logs.get("uploads")


async def remove_objects(store: ObjectStore, org_id: UUID, upload_id: UUID) -> None:
    """Everything of an upload: what came, the picture, and then its variants. Raises StoreUnavailable.

    In this order: who makes a variant looks for the picture afterwards, and takes the variant back when it is gone.
    """
    await store.delete([uploads.raw_key(org_id, upload_id)])
    for prefix in (uploads.picture_prefix(org_id, upload_id), uploads.variants_prefix(org_id, upload_id)):
        await store.delete(await store.list_keys(prefix))


class UploadTending:
    """Looks after what is due, at most BATCH at a time."""

    def __init__(self, db: Database, store: ObjectStore, processor: Processor) -> None:
        self._db = db
        self._store = store
        self._processor = processor

    async def tend(self, _: datetime) -> Done:
        """Every upload whose time has come. Where the store fails, it is due again the next time."""
        async with self._db.system_tx(
            "limner_dispatch", "which uploads are due, over all organizations: ids alone"
        ) as tx:
            due = await uploads.list_due(tx, BATCH)
        failed = 0
        for org_id, upload_id in due:
            try:
                await self._tend_one(org_id, upload_id)
            except (StoreUnavailable, SandboxBusy) as error:
                failed += 1
                log.warning("tend.postponed", upload=upload_id, org=org_id, error=str(error))
        swept = await asyncio.to_thread(self._store.sweep_incoming)
        return Done({"tended": len(due) - failed, "failed": failed, "swept": swept})

    async def _tend_one(self, org_id: UUID, upload_id: UUID) -> None:
        upload = await self._load(org_id, upload_id)
        if upload is None:
            return
        if upload.state == "processing":
            await self._processor.process(org_id, upload)
            return
        if upload.state == "pending":
            # bytes that came, and a client that did not say so: they are not looked at unasked
            async with self._db.tenant_tx(org_id, ROLE) as tx:
                await uploads.expire(tx, upload_id)
            upload = await self._load(org_id, upload_id)
        if upload is None or upload.state in {"pending", "processing"}:  # it was completed at the last moment
            return
        if upload.state == "ready":  # its URL is over now: nothing can come any more
            await self._store.delete([uploads.raw_key(org_id, upload_id)])
        else:
            await remove_objects(self._store, org_id, upload_id)
        async with self._db.tenant_tx(org_id, ROLE) as tx:
            if upload.description_state == "pending":
                await uploads.note_description(tx, upload_id)
            await uploads.tended(tx, upload)

    async def _load(self, org_id: UUID, upload_id: UUID) -> Upload | None:
        async with self._db.tenant_tx(org_id, ROLE) as tx:
            return await uploads.find_any(tx, upload_id)
