"""Two processes that stand side by side as two sets of resources over one database."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from limner.hub.executor import Run
from limner.hub.gates import Gates
from limner.hub.health import BreakerSettings
from limner.hub.remembered import RouteCache
from tests.hub.doubles import Shop

QUICK = BreakerSettings(failures=3, pause_s=0.4, long_pause_s=30)


def beside(shop: Shop) -> Shop:
    """Another process: what it knows it has from the database."""
    known = shop.resources
    gates = Gates(shop.db, known.gates.health._settings)
    return replace(shop, resources=replace(known, gates=gates, routes=RouteCache()))


async def end_of(shop: Shop, job_id: UUID | None = None) -> Any:
    """How one run ends that finds the routes as they are now."""
    return await done(await begun(shop, job_id))


async def begun(shop: Shop, job_id: UUID | None = None) -> Run:
    fresh = replace(shop.resources, routes=RouteCache())
    return Run(fresh, await shop.lease(job_id or await shop.submit()))


async def done(run: Run) -> Any:
    ending = await run.decide()
    await run.end(ending)
    return ending


async def all_closed(shop: Shop, job_ids: Sequence[UUID]) -> bool:
    return not any([(await shop.job(job_id)).is_open for job_id in job_ids])
