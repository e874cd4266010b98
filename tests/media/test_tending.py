"""What a worker does for uploads: bytes that never come, processes that die, stores that fail, objects that nobody needs."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from limner.db.pools import Database
from limner.kit.cpu import CpuPool
from limner.media import uploads
from limner.media.audio import AudioLimits, Recordings
from limner.media.processing import Processor
from limner.media.sandbox import Sandbox, SandboxFailed
from limner.media.sniffing import MAX_BYTES, MAX_PIXELS, MAX_SIDE, ImageLimits
from limner.media.store import ObjectStore, StoreUnavailable
from limner.media.tending import ROLE, UploadTending
from limner.media.uploads import Quota
from tests.conftest import Server
from tests.media.sending import Sender
from tests.web.pictures import png

PICTURE = png(40, 30)
PLENTY = Quota(2**40, 1000)
BOUNDS = ImageLimits(MAX_BYTES, MAX_PIXELS, MAX_SIDE)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEEK = 8 * 86_400


class FailingStore(ObjectStore):
    """A store that is away until it is told otherwise."""

    away = True

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        if self.away:
            raise StoreUnavailable("away")
        await super().put(key, data, media_type)

    async def delete(self, keys: list[str]) -> None:
        if self.away:
            raise StoreUnavailable("away")
        await super().delete(keys)


class DyingSandbox(Sandbox):
    """Every decoder dies."""

    async def prepare(self, *_: object) -> object:  # type: ignore[override]
        raise SandboxFailed("killed")


@pytest.fixture
def store(server: Server) -> ObjectStore:
    return ObjectStore(None, server.home)


def tending(db: Database, store: ObjectStore, sandbox: Sandbox | None = None, quota: Quota = PLENTY) -> UploadTending:
    recordings = Recordings(CpuPool(1, 2 << 30, 30.0), AudioLimits(MAX_BYTES, 60))
    processor = Processor(db, ROLE, store, sandbox or Sandbox(), BOUNDS, quota, recordings)
    return UploadTending(db, store, processor)


async def claimed(sender: Sender, db: Database) -> str:
    """An upload whose process has died three minutes ago."""
    upload_id = await sender.sent(PICTURE)
    async with db.tenant_tx(sender.tenant.org_id, ROLE) as tx:
        assert await uploads.claim(tx, UUID(upload_id)) == 1
    sender.superuser.execute("UPDATE limner.upload SET due_at = clock_timestamp() WHERE id = %s", [upload_id])
    return upload_id


async def test_bytes_that_never_come_give_the_quota_back(sender: Sender, db: Database, store: ObjectStore) -> None:
    empty, full = await sender.pending(PICTURE), await sender.sent(PICTURE)
    live = await sender.pending(PICTURE)
    for upload_id in (empty["id"], full):
        sender.age(upload_id, 361)

    await tending(db, store).tend(NOW)

    for upload_id in (empty["id"], full):
        shown = await sender.get(upload_id)
        assert (shown["status"], shown["error"]["code"]) == ("expired", "expired")
        answer = await sender.complete(upload_id)
        assert (answer.status, answer.json["code"]) == (409, "upload_expired")
    assert (await sender.get(live["id"]))["status"] == "pending"
    assert sender.objects() == []
    assert sender.usage() == (len(PICTURE), 1)


async def test_an_upload_whose_process_died_is_taken_again(sender: Sender, db: Database, store: ObjectStore) -> None:
    upload_id = await claimed(sender, db)

    await asyncio.gather(*(tending(db, store).tend(NOW) for _ in range(3)))

    assert (await sender.get(upload_id))["status"] == "ready"
    assert len(sender.objects()) == 1
    assert sender.usage()[1] == 1


async def test_a_live_claim_is_left_alone(sender: Sender, db: Database, store: ObjectStore) -> None:
    upload_id = await claimed(sender, db)
    sender.superuser.execute(
        "UPDATE limner.upload SET due_at = clock_timestamp() + interval '1 minute' WHERE id = %s", [upload_id]
    )

    await tending(db, store).tend(NOW)

    assert (await sender.get(upload_id))["status"] == "processing"
    again = await sender.complete(upload_id)
    assert (again.status, again.headers["retry-after"]) == (202, "1")


async def test_whoever_lost_the_claim_settles_nothing(sender: Sender, db: Database) -> None:
    upload_id = UUID(await claimed(sender, db))
    stored = uploads.Stored("u/x", "image/png", 1, 1, 1, False, b"\0" * 5, "#000000")
    async with db.tenant_tx(sender.tenant.org_id, ROLE) as tx:
        assert await uploads.claim(tx, upload_id) == 2

        assert await uploads.settle(tx, upload_id, 1, stored, PLENTY) == "lost"
        assert not await uploads.reject(tx, upload_id, 1, "x", "x")
        await uploads.give_back(tx, upload_id, 1)
        assert await uploads.claim(tx, upload_id) is None

    assert sender.usage() == (len(PICTURE), 1)


async def test_a_picture_that_kills_its_decoder_again_and_again_is_rejected(
    sender: Sender, db: Database, store: ObjectStore
) -> None:
    upload_id = await claimed(sender, db)

    await tending(db, store, DyingSandbox()).tend(NOW)

    shown = await sender.get(upload_id)
    assert (shown["status"], shown["error"]["code"]) == ("rejected", "unreadable_image")
    assert (sender.objects(), sender.usage()) == ([], (0, 0))


async def test_processes_that_die_with_it_four_times_are_enough(
    sender: Sender, db: Database, store: ObjectStore
) -> None:
    upload_id = await claimed(sender, db)
    sender.superuser.execute("UPDATE limner.upload SET tries = 3 WHERE id = %s", [upload_id])

    await tending(db, store).tend(NOW)

    assert (await sender.get(upload_id))["status"] == "rejected"


async def test_a_store_that_fails_is_asked_again_and_costs_nobody_the_upload(
    sender: Sender, db: Database, server: Server
) -> None:
    upload_id = await claimed(sender, db)
    store = FailingStore(None, server.home)
    duty = tending(db, store)

    for _ in range(6):
        await duty.tend(NOW)
    assert (await sender.get(upload_id))["status"] == "processing"
    store.away = False
    await duty.tend(NOW)

    assert (await sender.get(upload_id))["status"] == "ready"


async def test_what_does_not_fit_once_encoded_is_rejected(sender: Sender, db: Database, store: ObjectStore) -> None:
    upload_id = await claimed(sender, db)
    sender.superuser.execute("UPDATE limner.upload SET counted_bytes = 1 WHERE id = %s", [upload_id])
    sender.superuser.execute("UPDATE limner.upload_usage SET used_bytes = 1 WHERE org_id = %s", [sender.tenant.org_id])

    await tending(db, store, quota=Quota(2, 1000)).tend(NOW)

    shown = await sender.get(upload_id)
    assert (shown["status"], shown["error"]["code"]) == ("rejected", "quota_exceeded")
    assert (sender.objects(), sender.usage()) == ([], (0, 0))


async def test_rows_of_what_has_ended_go_in_the_end_and_ready_ones_stay(
    sender: Sender, db: Database, store: ObjectStore
) -> None:
    ready = await sender.ready(PICTURE)
    refused = await sender.sent(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert (await sender.complete(refused)).status == 422
    deleted = (await sender.ready(PICTURE))["id"]
    await sender.client.call("DELETE", f"/api/v1/uploads/{deleted}")

    def rows() -> set[str]:
        found = sender.superuser.execute("SELECT id::text FROM limner.upload WHERE org_id = %s", [sender.tenant.org_id])
        return {row[0] for row in found}

    await tending(db, store).tend(NOW)
    assert rows() == {ready["id"], refused, deleted}
    for upload_id in (ready["id"], refused, deleted):
        sender.age(upload_id, 400)
    await tending(db, store).tend(NOW)
    assert rows() == {ready["id"], refused}
    assert (await sender.get(refused))["status"] == "rejected"
    sender.age(refused, WEEK)
    await tending(db, store).tend(NOW)
    assert rows() == {ready["id"]}
    assert await sender.get(ready["id"]) == {**ready, "created_at": (await sender.get(ready["id"]))["created_at"]}


async def test_bytes_put_into_a_bucket_after_all_was_over_do_not_stay(
    sender: Sender, db: Database, store: ObjectStore
) -> None:
    """A bucket knows nothing of states: a presigned URL can be used again until it is over."""
    ready = await sender.ready(PICTURE)
    await store.put(uploads.raw_key(sender.tenant.org_id, UUID(ready["id"])), b"late", "x")

    sender.age(ready["id"], 400)
    await tending(db, store).tend(NOW)

    assert sender.objects("q") == []
    assert len(sender.objects("u")) == 1


async def test_files_that_a_killed_process_left_are_swept(db: Database, tmp_path: Path) -> None:
    store = ObjectStore(None, tmp_path)
    store.incoming.mkdir()
    old, young = store.incoming / "old", store.incoming / "young"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)

    done = await tending(db, store).tend(NOW)

    assert done.facts["swept"] == 1
    assert (old.exists(), young.exists()) == (False, True)
