"""An app with webhooks at a receiver of the tests': events happen, are placed as the relay places them, and are delivered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.db.tx import Row
from limner.egress import doors
from limner.egress.untrusted import UntrustedDoor
from limner.events import deliveries, endpoints
from limner.events.deliveries import Delivery, Ended, Lease, Outcome, Span
from limner.events.delivering import DeliveryLoop, DeliverySettings
from limner.events.endpoints import Endpoint
from limner.hub import jobs, receipts, webhook_bodies
from limner.kit.crypto import RootKey, Sealer
from limner.media.urls import MediaUrls
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators import receiver as emulator
from tests.emulators.receiver import Receiver
from tests.faults.cluster import eventually

DAY_S = 86_400.0
TERMINAL = "SELECT id FROM limner.event WHERE org_id = %s AND subject_id = %s AND type IN ('job.completed', 'job.failed', 'job.cancelled')"
PLANT = """
WITH made AS (
  INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload, deliver_to)
  SELECT %s, limner._new_id(), %s, %s, gen_random_uuid(), '{}', %s FROM generate_series(1, %s) RETURNING id)
SELECT array_agg(id ORDER BY id) FROM made
"""


def door(settings: Any, *origins: str) -> UntrustedDoor:
    """As a worker's, that may send to these origins."""
    return doors.untrusted(settings.model_copy(update={"egress_allow_origins": frozenset(origins)}))


def ended(outcome: Outcome, status: int | None) -> Ended:
    """A try that took no time; a failure is tried again in a minute."""
    return Ended(outcome, status, 0, None if outcome == "delivered" else 60.0)


@dataclass(frozen=True)
class Office:
    """Everything for one app's webhooks; nothing delivers unless `delivering` is entered."""

    db: Database
    superuser: psycopg.Connection
    tenant: Tenant
    receiver: Receiver
    sealer: Sealer
    settings: Any
    root: RootKey

    async def endpoint(self, path: str = "hook/200", **facts: Any) -> Endpoint:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await endpoints.create(
                tx, self.sealer, self.tenant.app.id, f"{self.receiver.url}/{path}", most=20, **facts
            )

    async def default(self) -> Endpoint:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await endpoints.ensure_default(tx, self.sealer, self.tenant.app.id)

    async def again(self, endpoint: Endpoint) -> Endpoint:
        """As it is now."""
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await endpoints.get(tx, self.tenant.app.id, endpoint.id)

    async def keys(self, endpoint: Endpoint) -> Any:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await endpoints.keys(tx, self.sealer, endpoint.id)

    async def rotate(self, endpoint: Endpoint) -> None:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            await endpoints.rotate(tx, self.sealer, endpoint, 3600)

    async def job(self) -> tuple[UUID, UUID]:
        """A job that ended well: (its id, its last event's)."""
        job_id = (await acts.submit(self.db, self.tenant)).job_id
        await acts.work(self.db, job_id)
        row = self.superuser.execute(TERMINAL, [self.tenant.org_id, job_id]).fetchone()
        assert row is not None
        return job_id, row[0]

    def plant(self, count: int = 1, type_: str = "job.completed", deliver_to: str | None = None) -> list[UUID]:
        """Events of jobs that never were."""
        row = self.superuser.execute(
            PLANT, [self.tenant.org_id, self.tenant.app.id, type_, deliver_to, count]
        ).fetchone()
        assert row is not None
        found: list[UUID] = row[0]
        return found

    async def place(self, event_ids: list[UUID]) -> int:
        """As the relay does; how many deliveries that made."""
        async with self.db.system_tx("limner_dispatch", "a test places events") as tx:
            row = await tx.get(
                "SELECT limner.queue_deliveries(%s::uuid[], %s::uuid[]) AS made",
                [[self.tenant.org_id] * len(event_ids), event_ids],
            )
        return int(row["made"])

    async def happen(self, count: int = 1, type_: str = "job.completed", deliver_to: str | None = None) -> list[UUID]:
        event_ids = self.plant(count, type_, deliver_to)
        await self.place(event_ids)
        return event_ids

    async def claim(self, limit: int = 64, *, at_once: int = 4, lease_s: float = 60.0) -> list[Lease]:
        async with self.db.system_tx("limner_dispatch", "a test claims") as tx:
            return await deliveries.claim(tx, "test", limit, lease_s, at_once)

    async def end(self, lease: Lease, ended: Ended, off_after_s: float = 5 * DAY_S) -> str:
        async with self.db.tenant_single(self.tenant.org_id, "limner_worker") as tx:
            return await deliveries.end(tx, lease, ended, off_after_s)

    async def change(self, endpoint: Endpoint, path: str | None) -> None:
        url = None if path is None else f"{self.receiver.url}/{path}"
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            await endpoints.change(tx, endpoint, {"url": url})

    async def switch(self, endpoint: Endpoint, *, enabled: bool) -> None:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            await endpoints.switch(tx, endpoint, enabled=enabled)

    async def redeliver_span(self, endpoint: Endpoint, **facts: Any) -> Span:
        """Of the last hour."""
        now = datetime.now(UTC)
        since, until = now - timedelta(hours=1), now + timedelta(minutes=1)
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await deliveries.redeliver_span(tx, self.tenant.app.id, endpoint.id, since, until, **facts)

    async def receipt(self, job_id: UUID, status: str) -> dict[str, Any] | None:
        """The job's, once its webhooks are that far."""
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            receipt = await receipts.build(tx, await jobs.get(tx, self.tenant.app.id, job_id))
        return receipt if all(sent["status"] == status for sent in receipt["webhooks"]) else None

    async def redeliver(self, delivery_id: UUID) -> str:
        async with self.db.tenant_single(self.tenant.org_id) as tx:
            return await deliveries.redeliver(tx, self.tenant.app.id, delivery_id)

    async def deliveries(self, endpoint: Endpoint, limit: int = 100) -> list[Delivery]:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await deliveries.list_of_endpoint(tx, endpoint.id, limit=limit)

    async def only(self, endpoint: Endpoint) -> Delivery:
        [delivery] = await self.deliveries(endpoint)
        return delivery

    def row(self, table: str, key: UUID) -> Row:
        """A row as it is stored."""
        found = self.superuser.execute(f"SELECT to_jsonb(t) FROM limner.{table} t WHERE id = %s", [key]).fetchone()
        assert found is not None
        row: Row = found[0]
        return row

    def due_now(self, endpoint: Endpoint) -> None:
        """Let the time of whatever waits for it have come."""
        self.superuser.execute(
            "UPDATE limner.webhook_delivery SET next_at = clock_timestamp() WHERE endpoint_id = %s AND phase = 'waiting'",
            [endpoint.id],
        )
        self.superuser.execute(
            "UPDATE limner.webhook_endpoint SET turn_at = clock_timestamp() WHERE id = %s", [endpoint.id]
        )

    def loop(
        self, *, slots: int = 64, endpoint_slots: int = 4, root: RootKey | None = None, also: str | None = None
    ) -> DeliveryLoop:
        origins = [self.receiver.url, *([also] if also else [])]
        bodies = webhook_bodies.Bodies(MediaUrls(self.root, self.db.clock, "http://limner.test", 86_400))
        limits = DeliverySettings(slots, endpoint_slots, 5 * DAY_S, leave_s=5.0)
        sealer = Sealer(root, endpoints.PURPOSE) if root else self.sealer
        return DeliveryLoop(self.db, door(self.settings, *origins), sealer, bodies.compose, limits)

    @asynccontextmanager
    async def delivering(self, **facts: Any) -> AsyncIterator[DeliveryLoop]:
        """A loop at work; what hangs is let go at the end, and it must come to an end."""
        loop = self.loop(**facts)
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            loop.stop()
            self.receiver.let_go.set()
            await asyncio.wait_for(task, 10)

    async def settled(self, endpoint: Endpoint, tries: int = 1) -> Delivery:
        """Its only delivery, once it was tried so often and nobody is at it; a loop must be at work."""

        async def tried() -> Delivery | None:
            one = await self.only(endpoint)
            return one if len(one.attempts) >= tries and one.status != "sending" else None

        found: Delivery = await eventually(tried)
        return found


@pytest_asyncio.fixture(scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with emulator.running() as running:
        yield running


@pytest.fixture
def office(db: Database, superuser: psycopg.Connection, tenant: Tenant, receiver: Receiver, server: Server) -> Office:
    # what other tests left waits for nobody
    superuser.execute("UPDATE limner.webhook_endpoint SET turn_at = NULL, is_enabled = false")
    receiver.got.clear()
    receiver.most.clear()
    receiver.let_go.clear()
    sealer = Sealer(server.root, endpoints.PURPOSE)
    return Office(db, superuser, tenant, receiver, sealer, server.settings, server.root)
