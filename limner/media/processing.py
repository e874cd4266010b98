"""From the bytes that came to what can be used: a picture is looked at and encoded afresh, a recording walked through and measured;
either is stored and counted.

Whoever works on an upload has claimed it for three minutes. If that process dies, a worker takes the upload again (`media.tending`): no
state is left in which nobody is responsible.
"""

import hashlib
from typing import Literal
from uuid import UUID

from limner.db.pools import Database
from limner.media import audio, sniffing, uploads
from limner.media.audio import Recordings
from limner.media.sandbox import Prepared, Sandbox, SandboxBusy, SandboxFailed
from limner.media.sniffing import ImageLimits, ImageRejected, MediaRejected
from limner.media.store import ObjectMissing, ObjectStore, StoreUnavailable
from limner.media.uploads import Quota, Stored, Upload
from limner.telemetry import logs, metrics

MAX_CRASHES = 3
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
log = logs.get("uploads")

Outcome = Literal["done", "missing", "busy"]


class Processor:
    """Works on uploads under one of the database's roles."""

    def __init__(
        self, db: Database, role: str, store: ObjectStore, sandbox: Sandbox, limits: ImageLimits, quota: Quota,
        recordings: Recordings,
    ) -> None:  # fmt: skip
        self._db = db
        self._role = role
        self._store = store
        self._sandbox = sandbox
        self._limits = limits
        self._quota = quota
        self._recordings = recordings

    async def process(self, org_id: UUID, upload: Upload) -> Outcome:
        """Bring an upload whose bytes have come to its end: ready or rejected.

        `missing`: nothing came yet, nothing is changed. `busy`: another process has it, or it has ended. Raises StoreUnavailable and
        SandboxBusy: it is as it was, for the next one to take.
        """
        if upload.state == "pending":
            try:
                await self._store.size(uploads.raw_key(org_id, upload.id))
            except ObjectMissing:
                return "missing"
        async with self._sandbox.turn(org_id):
            async with self._db.tenant_tx(org_id, self._role) as tx:
                number = await uploads.claim(tx, upload.id)
            if number is None:
                return "busy"
            try:
                ended = await self._work(org_id, upload, number)
            except MediaRejected as error:
                ended = await self._reject(org_id, upload, number, error)
            except (StoreUnavailable, SandboxBusy) as error:
                log.warning("upload.postponed", upload=upload.id, org=org_id, error=str(error))
                async with self._db.tenant_tx(org_id, self._role) as tx:
                    await uploads.give_back(tx, upload.id, number)
                raise
        if not ended:
            return "busy"
        await self._forget_raw(org_id, upload.id)
        return "done"

    async def _work(self, org_id: UUID, upload: Upload, number: int) -> bool:
        """Whether it is ready now; False: the claim was over by then. Raises MediaRejected, StoreUnavailable, SandboxBusy."""
        if number - upload.given_back > MAX_CRASHES:
            code = "unreadable_image" if upload.kind == "image" else "unsupported_media"
            raise MediaRejected(code, "It could not be read, repeatedly.")
        data = await self._bytes(org_id, upload)
        stored, kept = await (self._measured if upload.kind == "audio" else self._encoded)(org_id, upload, data)
        await self._store.put(stored.key, kept, stored.media_type)
        async with self._db.tenant_tx(org_id, self._role) as tx:
            outcome = await uploads.settle(tx, upload.id, number, stored, self._quota)
        if outcome == "ready":
            metrics.UPLOADS.labels("ready").inc()
        if outcome == "full":
            raise MediaRejected(
                "quota_exceeded", "Encoded afresh the picture does not fit into what is left of the quota."
            )
        if outcome == "lost":
            await self._forget_if_gone(org_id, upload.id)
        return outcome == "ready"

    async def _encoded(self, org_id: UUID, upload: Upload, data: bytes) -> tuple[Stored, bytes]:
        """A picture, encoded afresh. Raises ImageRejected, SandboxBusy."""
        self._look_at_head(data)
        prepared = await self._prepare(data)
        return _stored(org_id, upload.id, prepared), prepared.data

    async def _measured(self, org_id: UUID, upload: Upload, data: bytes) -> tuple[Stored, bytes]:
        """A recording, as it came. Raises AudioRejected."""
        facts = await self._recordings.measure(data)
        key = f"{uploads.picture_prefix(org_id, upload.id)}{upload.sha256.hex()}.{audio.EXTENSIONS[facts.media_type]}"
        return Stored(key, facts.media_type, len(data), duration_ms=facts.duration_ms), data

    async def _prepare(self, data: bytes) -> Prepared:
        """Twice, where the decoder dies: the first time somebody may have killed it. Raises ImageRejected, SandboxBusy."""
        limits = self._limits
        for _ in range(2):
            try:
                return await self._sandbox.prepare(data, limits.max_bytes, limits.max_pixels, limits.max_side)
            except SandboxFailed as error:
                log.warning("decoder.died", error=str(error))
        raise ImageRejected("unreadable_image", "The picture cannot be decoded.")

    async def _bytes(self, org_id: UUID, upload: Upload) -> bytes:
        """What came, if it is what was announced. Raises MediaRejected, StoreUnavailable."""
        key = uploads.raw_key(org_id, upload.id)
        try:
            if await self._store.size(key) != upload.size_bytes:  # asked first: nothing larger is read
                raise MediaRejected("checksum_mismatch", "What came has another size than was announced.")
            data = await self._store.read(key)
        except ObjectMissing:
            raise MediaRejected("not_uploaded", "What came is gone.") from None
        if hashlib.sha256(data).digest() != upload.sha256:
            raise MediaRejected("checksum_mismatch", "What came is not what was announced: its SHA-256 differs.")
        return data

    def _look_at_head(self, data: bytes) -> None:
        """What can be told without decoding needs no process. Raises ImageRejected."""
        media_type = sniffing.sniff(data)
        if media_type is None:
            raise sniffing.unsupported(data)
        if (size := sniffing.header_size(data)) is not None:
            sniffing.check_bounds(media_type, *size, self._limits.max_pixels, self._limits.max_side)

    async def _reject(self, org_id: UUID, upload: Upload, number: int, error: MediaRejected) -> bool:
        async with self._db.tenant_tx(org_id, self._role) as tx:
            ended = await uploads.reject(tx, upload.id, number, error.code, error.message)
        if ended:
            metrics.UPLOADS.labels(error.code).inc()
            log.info("upload.rejected", upload=upload.id, org=org_id, code=error.code)
            await self._forget_pictures(org_id, upload.id)
        return ended

    async def _forget_raw(self, org_id: UUID, upload_id: UUID) -> None:
        """What came is not needed any more. If the store fails now, it goes when the upload is looked after."""
        try:
            await self._store.delete([uploads.raw_key(org_id, upload_id)])
        except StoreUnavailable as error:
            log.warning("upload.kept", upload=upload_id, org=org_id, error=str(error))

    async def _forget_pictures(self, org_id: UUID, upload_id: UUID) -> None:
        try:
            await self._store.delete(await self._store.list_keys(uploads.picture_prefix(org_id, upload_id)))
        except StoreUnavailable as error:
            log.warning("upload.kept", upload=upload_id, org=org_id, error=str(error))

    async def _forget_if_gone(self, org_id: UUID, upload_id: UUID) -> None:
        """The claim was lost after the picture was stored: where the upload was deleted meanwhile, the picture must not stay."""
        async with self._db.tenant_tx(org_id, self._role) as tx:
            found = await uploads.find_any(tx, upload_id)
        if found is None or found.state not in {"processing", "ready"}:
            await self._forget_pictures(org_id, upload_id)


def _stored(org_id: UUID, upload_id: UUID, prepared: Prepared) -> Stored:
    """Named by its SHA-256."""
    return Stored(
        key=f"{uploads.picture_prefix(org_id, upload_id)}{prepared.sha256}.{EXTENSIONS[prepared.media_type]}",
        media_type=prepared.media_type,
        width=prepared.width,
        height=prepared.height,
        size_bytes=len(prepared.data),
        has_alpha=prepared.has_alpha,
        thumbhash=prepared.thumbhash,
        colour=prepared.colour,
    )
