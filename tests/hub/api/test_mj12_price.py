"""MJ12: the price charged is computed from what is executed, whatever the request's author tried.

Bodies are mutated at random around what is priced. Every accepted one goes through limner's own worker loop with the
local provider's own adapter, over a pool that counts the pieces of work it is asked for instead of painting.
"""

import asyncio
import random
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import psycopg

from limner.db.pools import Database
from limner.hub import executor
from limner.hub.loop import LoopSettings, WorkerLoop
from limner.hub.providers.base import CallClass, ProviderCall, ProviderResult
from limner.hub.providers.local.adapter import LocalAdapter
from limner.hub.providers.local.models import MODELS
from limner.kit.cpu import CpuPool
from limner.media.store import ObjectStore
from tests import acts
from tests.conftest import MakeTenant
from tests.hub.doubles import imports
from tests.running import Client, Process
from tests.web import stored
from tests.web.pictures import png, uri

PRICES = {model.name: model.price_credits for model in MODELS}
PICTURE = uri(png(2, 2))
PLAIN: dict[str, dict[str, Any]] = {
    "local/canvas": {"prompt": "x"},
    "local/describe": {"images": [PICTURE]},
    "local/upscale": {"images": [PICTURE]},
    "local/stylise": {"images": [PICTURE], "style": "sketch"},
    "local/inpaint": {"images": [PICTURE], "mask": uri(png(2, 2, pixel=b"\0\0\0\0"))},
}
NAMES = ("n", "num_images", "num_outputs", "size", "steps", "width", "height", "quality", "scale", "seed", "batch_size",
         "num_outputs ", "Num_Outputs", "count", "samples", "price", "unit_price_mc", "tokens", "style", "aspect_ratio")  # fmt: skip
VALUES: tuple[Any, ...] = (
    0, 1, 2, 3, 4, 5, 100, -1, 1.0, 2.0, 4.0, 1.5, 3.9999999, "1", "4", "4.0", None, True, False, [], [4], {}, {"value": 4},
    512, 1024, 10**18, 1e18, "1:1", "auto", float(2**53),
)  # fmt: skip
LIKELY: tuple[Any, ...] = (1, 2, 3, 4, 1.0, 2.0, 3.0, 4.0, 512, 1024.0)


def mutated(rng: random.Random) -> dict[str, Any]:
    model = rng.choice([*PLAIN, "local/canvas", "local/canvas", "local/canvas"])
    wanted = dict(PLAIN[model])
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        name = rng.choice(("num_outputs", "num_outputs", "size", rng.choice(NAMES)))
        wanted[name] = rng.choice(rng.choice((VALUES, LIKELY, LIKELY)))
    body: dict[str, Any] = {"model": model, "input": wanted}
    if rng.random() < 0.1:
        body[rng.choice(NAMES)] = rng.choice(VALUES)
    if rng.random() < 0.05:
        body["model"] = rng.choice((["local/canvas"], "local/canvas ", "LOCAL/CANVAS", None, "local/canvas\t"))
    return body


class CountingPool(CpuPool):
    """Does nothing and counts how often it is asked to."""

    asked = 0

    async def run(self, target: str, *args: object, time_limit_s: float | None = None) -> Any:
        self.asked += 1
        return ("a text" if "describe" in target else png(2, 2)), {}


class CountingProvider:
    """The local provider's adapter; `asked` is how many outputs each job made it compute."""

    name = "local"
    call_class = CallClass.A

    def __init__(self) -> None:
        self.asked: dict[UUID, int] = {}

    async def run(self, call: ProviderCall) -> ProviderResult:
        pool = CountingPool(1, 1 << 30, 1.0)
        result = await LocalAdapter(pool).run(call)
        self.asked[call.job_id] = self.asked.get(call.job_id, 0) + pool.asked
        return result


async def work_off(db: Database, org_id: UUID, provider: CountingProvider, folder: Path) -> None:
    """Run limner's worker loop over that provider until the organization has no open job."""
    pool = CpuPool(1, 2 << 30, 30.0)
    loop = WorkerLoop(
        executor.resources(
            db, {"local": provider}, ObjectStore(None, folder), pool, max_runs=3, backoff_s=0.1, imports=imports(pool)
        ),
        LoopSettings(slots=50, lease_s=30.0, heartbeat_s=10.0, shutdown_s=10.0),
    )
    running = asyncio.create_task(loop.run())
    async with asyncio.timeout(60):
        while (await open_jobs(db, org_id)) > 0:
            await asyncio.sleep(0.1)
    loop.stop()
    await running
    await pool.aclose()


async def open_jobs(db: Database, org_id: UUID) -> int:
    async with db.tenant_tx(org_id) as tx:
        return int((await tx.get("SELECT count(*) AS n FROM limner.job_queue WHERE org_id = %s", [org_id]))["n"])


async def test_mj12_a_thousand_mutated_bodies_are_charged_for_what_is_executed(
    client: Client, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=100_000)
    client.api_key = tenant.api_key
    rng = random.Random(12)
    accepted: dict[UUID, tuple[str, int]] = {}

    for _ in range(1000):
        answer = await client.call("POST", "/api/v1/generate", data=orjson.dumps(mutated(rng)))
        assert answer.status in {202, 400, 404}, answer.body
        if answer.status == 202:
            accepted[UUID(answer.json["job_id"])] = (answer.json["model"], answer.json["tokens_charged"])

    assert 200 < len(accepted) < 750  # both kinds of body were there in numbers
    assert len({charge for _, charge in accepted.values()}) >= 4
    held = stored.rows(superuser, tenant.org_id)
    assert (held["job"], held["held"]) == (len(accepted), 1000 * sum(charge for _, charge in accepted.values()))

    provider = CountingProvider()
    await work_off(db, tenant.org_id, provider, tmp_path)

    query = "SELECT id, state, price_final_mc, jsonb_array_length(outputs) FROM limner.job WHERE org_id = %s"
    for job_id, state, final_mc, delivered in superuser.execute(query, [tenant.org_id]):
        model, quoted = accepted[job_id]
        assert state == "succeeded"
        assert provider.asked[job_id] == delivered
        assert delivered * PRICES[model] * 1000 == final_mc == quoted * 1000, (job_id, model)
    settled = stored.rows(superuser, tenant.org_id)
    assert (settled["held"], settled["available"]) == (0, 100_000_000 - held["held"])
    assert await acts.books(db, tenant.org_id) == {}


async def test_mj12_what_was_delivered_times_the_price_is_what_was_charged(client: Client, worker: Process) -> None:
    rng = random.Random(30)
    jobs = []
    for number in range(30):
        asked = rng.choice((1, 2, 3, 4, 2.0, 4.0))
        wanted: dict[str, Any] = {"prompt": f"p{number}", "size": 512, "num_outputs": asked, "seed": number}
        answer = await client.call("POST", "/api/v1/generate", {"model": "local/canvas", "input": wanted})
        jobs.append((answer.json["job_id"], int(asked)))

    total = 0
    for job_id, asked in jobs:
        job = await client.finished(job_id, timeout_s=60)
        assert job["status"] == "succeeded"
        assert len(job["outputs"]) == job["tokens_charged"] == asked
        assert len({output["url"] for output in job["outputs"]}) == asked
        total += asked
    assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 1000 - total
