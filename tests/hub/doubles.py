"""A provider that does as it is told, over the real seam; and a shop: an organization that sells one model by such providers."""

import asyncio
import random
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from prometheus_client import REGISTRY

from limner.db.pools import Database
from limner.egress.destinations import Destinations
from limner.egress.untrusted import UntrustedDoor
from limner.hub import catalog, jobs, runs
from limner.hub.executor import Resources, Run, resources
from limner.hub.health import NO_BREAKER, BreakerSettings
from limner.hub.imports import Imports
from limner.hub.providers.base import Adapter, Blob, CallClass, Output, ProviderCall, ProviderResult
from limner.kit import ids
from limner.kit.cpu import CpuPool
from limner.kit.money import MC
from limner.media.audio import AudioLimits, Recordings
from limner.media.sniffing import ImageLimits
from limner.media.store import ObjectStore
from tests import acts
from tests.conftest import Tenant

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["prompt"],
    "properties": {"prompt": {"type": "string"}, "num_outputs": {"type": "integer", "minimum": 1, "maximum": 8}},
}
Step = ProviderResult | BaseException | Callable[[ProviderCall], Awaitable[ProviderResult]]


def png(side: int = 4, grey: int = 90) -> bytes:
    """A small true-colour PNG of one shade."""
    rows = (b"\0" + bytes([grey, grey, grey]) * side) * side
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def text(*words: str, **facts: Any) -> ProviderResult:
    return ProviderResult(tuple(Output(n, "text", text=word) for n, word in enumerate(words or ("a hare",))), **facts)


def pictures(*data: bytes, **facts: Any) -> ProviderResult:
    return ProviderResult(tuple(Output(n, "image", data=item) for n, item in enumerate(data)), **facts)


class Scripted:
    """Answers call after call by its steps, the last one for ever; remembers what it was asked."""

    def __init__(self, name: str, *steps: Step, call_class: CallClass = CallClass.A) -> None:
        self.name = name
        self.call_class = call_class
        self.steps = steps or (text(),)
        self.calls: list[ProviderCall] = []
        self.at_once = 0
        self.peak = 0

    async def run(self, call: ProviderCall) -> ProviderResult:
        self.calls.append(call)
        step = self.steps[min(len(self.calls), len(self.steps)) - 1]
        self.at_once += 1
        self.peak = max(self.peak, self.at_once)
        try:
            if isinstance(step, BaseException):
                raise step
            return step if isinstance(step, ProviderResult) else await step(call)
        finally:
            self.at_once -= 1


def after(seconds: float, result: ProviderResult | None = None) -> Callable[[ProviderCall], Awaitable[ProviderResult]]:
    async def slow(_: ProviderCall) -> ProviderResult:
        await asyncio.sleep(seconds)
        return result or text()

    return slow


@dataclass(frozen=True)
class Shop:
    """What a test sells and works with. `providers` in order of priority."""

    db: Database
    tenant: Tenant
    model_id: UUID
    resources: Resources
    providers: tuple[Scripted, ...]

    async def submit(
        self, *, outputs: int = 1, price: int = 1, unit: str = "output", image: Blob | None = None,
        job_id: UUID | None = None, **changes: Any,
    ) -> UUID:  # fmt: skip
        """A job worth `price` credits an output (or, `unit` "job", for all of them)."""
        asked = acts.request(self.tenant, price=price, **changes)
        total = price * (outputs if unit == "output" else 1)
        given: dict[str, Any] = {"prompt": "a hare", "num_outputs": outputs}
        images = (("image_0", image),) if image else ()
        if image:
            given["images"] = [{"type": image.media_type}]
        request = replace(asked, model_id=self.model_id, input=given, hold_mc=total * MC, images=images)
        async with self.db.tenant_single(self.tenant.org_id) as tx:
            return (await jobs.submit(tx, job_id or ids.new(), request)).job_id

    async def lease(self, job_id: UUID, lease_s: float = 30.0) -> runs.Lease:
        return await acts.lease(self.db, job_id, lease_s=lease_s)

    async def run(self, job_id: UUID, lease_s: float = 30.0) -> jobs.Job:
        """One whole run by the executor; the job as it then stands."""
        one = Run(self.resources, await self.lease(job_id, lease_s))
        await one.end(await one.decide())
        return await self.job(job_id)

    async def run_to_the_end(self, job_id: UUID) -> jobs.Job:
        while (job := await self.job(job_id)).is_open:
            await asyncio.sleep(0.02)
            if await self._claimable(job_id):
                job = await self.run(job_id)
        return job

    async def job(self, job_id: UUID) -> jobs.Job:
        return await acts.job(self.db, self.tenant, job_id)

    async def attempts(self, job_id: UUID) -> list[dict[str, Any]]:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await tx.all(
                "SELECT run, provider, send_no, rule, state, error_code, idem_key, cost_micro_usd, latency_ms"
                " FROM limner.provider_call WHERE org_id = %s AND job_id = %s ORDER BY created_at",
                [tx.org_id, job_id],
            )

    async def events(self, job_id: UUID) -> list[str]:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            rows = await tx.all(
                "SELECT type FROM limner.event WHERE org_id = %s AND subject_id = %s ORDER BY id", [tx.org_id, job_id]
            )
        return [row["type"] for row in rows]

    async def transfers(self, job_id: UUID) -> list[tuple[str, int]]:
        """(kind, milli-credits) of everything that moved for the job, in order."""
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            rows = await tx.all(
                "SELECT kind, amount_mc FROM limner.transfer WHERE org_id = %s AND job_id = %s ORDER BY created_at",
                [tx.org_id, job_id],
            )
        return [(row["kind"], row["amount_mc"]) for row in rows]

    async def queue(self, job_id: UUID) -> dict[str, Any] | None:
        async with self.db.tenant_tx(self.tenant.org_id) as tx:
            return await tx.find(
                "SELECT runs, fence, lease_owner, percent, stage, extract(epoch FROM claimable_at - clock_timestamp())::float8"
                " AS wait_s FROM limner.job_queue WHERE org_id = %s AND job_id = %s",
                [tx.org_id, job_id],
            )

    async def _claimable(self, job_id: UUID) -> bool:
        row = await self.queue(job_id)
        return row is not None and row["wait_s"] <= 0


def imports(pool: CpuPool, *allowed: str) -> Imports:
    """Pictures by URL, from these origins and from public addresses."""
    limits = ImageLimits(20 << 20, 40_000_000, 16_384)
    recordings = Recordings(pool, AudioLimits(25 << 20, 7200))
    return Imports(UntrustedDoor(Destinations(allowed, ())), pool, limits, recordings)


async def open_shop(
    db: Database, tenant: Tenant, store: ObjectStore, pool: CpuPool, *providers: Scripted,
    backoff_s: float = 0.05, max_runs: int = 3, config: dict[str, Any] | None = None, cost_micro_usd: int = 700,
    breaker: BreakerSettings = NO_BREAKER,
) -> Shop:  # fmt: skip
    """Put the providers and a model over them into the tenant's own catalog; the first is tried first."""
    name = f"test/painter-{random.randrange(10**9)}"
    adapters: dict[str, Adapter] = {provider.name: provider for provider in providers}
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        facts = {
            "name": name,
            "display_name": "Painter",
            "kind": "image.generate",
            "input_schema": SCHEMA,
            "price_mc": MC,
        }
        model_id = await catalog.put_model(tx, facts)
        for place, provider in enumerate(providers, start=1):
            await catalog.put_provider(
                tx, {"name": provider.name, "display_name": provider.name, "adapter": provider.name}
            )
            await catalog.put_route(tx, name, provider.name, provider_model="m", priority=place,
                                    cost_micro_usd=cost_micro_usd, config=config)  # fmt: skip
    means = resources(db, adapters, store, pool, max_runs, backoff_s, imports(pool), breaker=breaker)
    return Shop(db, tenant, model_id, means, providers)


def counted(name: str, **labels: str) -> float:
    """A counter of this process."""
    return REGISTRY.get_sample_value(f"limner_{name}_total", labels) or 0.0


async def assert_settled(shop: Shop, job_id: UUID, charged_mc: int = MC, held_mc: int = MC) -> None:
    """The job's hold was settled once, for this much, and the books are right."""
    kind = "post" if charged_mc else "void"
    assert await shop.transfers(job_id) == [("hold", held_mc), (kind, charged_mc)]
    assert await acts.books(shop.db, shop.tenant.org_id) == {}
