"""What the processes weigh: an idle worker and an API that has served some hundreds of requests."""

import asyncio

import aiohttp
import psutil
import pytest

from limner.kit import cpu
from tests.conftest import Tenant
from tests.faults.cluster import Cluster
from tests.running import Client, Process
from tests.web import pictures

MIB = 1024 * 1024
API_MIB = 150
WORKER_MIB = 200


def _resident_mib(process: Process) -> float:
    """The process, and of its children what is theirs alone: pages of libraries that both have loaded are there once."""
    main = psutil.Process(process.popen.pid)
    own = sum(child.memory_full_info().uss for child in main.children(recursive=True))
    return float((main.memory_info().rss + own) / MIB)


async def test_an_idle_worker_and_a_used_api_stay_small(
    tenant: Tenant, cluster: Cluster, http: aiohttp.ClientSession
) -> None:
    api = cluster.api(wait=False)
    worker = cluster.worker()
    idle_worker = _resident_mib(worker)
    api.wait()
    client = Client(http, api.url, tenant.api_key)

    async def serve(_: int) -> None:
        accepted = await client.generate("local/canvas", input={"prompt": "a hare", "size": 512, "style": "gradient"})
        assert accepted.status == 202
        assert (await client.call("GET", f"/api/v1/jobs/{accepted.json['job_id']}")).status == 200

    for _ in range(20):
        await asyncio.gather(*(serve(n) for n in range(10)))
    used_api = _resident_mib(api)
    alone = psutil.Process(worker.popen.pid).memory_info().rss / MIB

    print(
        f"idle worker {idle_worker:.0f} MiB; API after 400 requests {used_api:.0f} MiB; worker at work {alone:.0f} MiB without children"
    )
    assert idle_worker <= WORKER_MIB
    assert used_api <= API_MIB
    assert alone <= WORKER_MIB, "the loop's own process stays as small at work: pictures live in the children"


@pytest.mark.long
async def test_pictures_leave_no_memory_behind(tenant: Tenant, cluster: Cluster, http: aiohttp.ClientSession) -> None:
    """The API with its decoder stays within its limit; a worker is back within its own when its children have rested."""
    api, worker = cluster.api(), cluster.worker(LIMNER_CPU_PROCESSES="2")
    client = Client(http, api.url, tenant.api_key)
    photo = pictures.uri(pictures.png(3000, 2000))

    async def describe() -> None:
        accepted = await client.generate("local/describe", input={"images": [photo]})
        assert accepted.status == 202, accepted.body
        assert (await client.finished(accepted.json["job_id"]))["status"] == "succeeded"

    for _ in range(8):
        await asyncio.gather(*(describe() for _ in range(4)))
    busy_api, busy_worker = _resident_mib(api), _resident_mib(worker)
    await asyncio.sleep(cpu.IDLE_S + 1)
    idle_worker = _resident_mib(worker)

    print(
        f"API with its decoder {busy_api:.0f} MiB; worker {busy_worker:.0f} MiB at work, {idle_worker:.0f} MiB idle again"
    )
    assert busy_api <= API_MIB
    assert idle_worker <= WORKER_MIB
