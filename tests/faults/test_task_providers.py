"""Providers that work on tasks, through the front door: submitted over HTTP, worked on by a worker, told by a receipt.

And their webhooks: they wake whoever waits, they bring back a task whose name was lost, and a forged one changes nothing.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.local.models import UPSCALE
from limner.hub.providers.openai_compatible import offers
from limner.kit.money import MC
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators import defapi_server, replicate_server
from tests.emulators.defapi_server import DefApiServer
from tests.emulators.openai_server import Says
from tests.emulators.replicate_server import ReplicateServer
from tests.faults.cluster import PICTURE, ApiProcess, Cluster, eventually
from tests.running import Client

KEY = "r8-secret-9c41aa07d2"
OWN = "acme/own"
PUBLIC = "https://limner.example"
QUICK = {"poll_s": 0.05}
SLOW_S = 30.0
SELDOM = {"poll_s": SLOW_S}
"""Asked so seldom that only a hook explains a quick end."""
CALL = "SELECT state, provider_task_id, send_no FROM limner.provider_call WHERE org_id = %s"


@dataclass(frozen=True)
class Far:
    replicate: ReplicateServer
    defapi: DefApiServer


@pytest_asyncio.fixture(scope="module")
async def far() -> AsyncIterator[Far]:
    async with replicate_server.running(KEY) as replicate, defapi_server.running(KEY) as defapi:
        yield Far(replicate, defapi)


@pytest.fixture(scope="module")
def api(server: Server, db: Database, far: Far) -> Iterator[ApiProcess]:
    """One API and one worker for this file; the worker reaches both servers, and has their keys."""
    cluster = Cluster(server)
    api = cluster.api(wait=False, LIMNER_PUBLIC_URL=PUBLIC)
    origins = f"{far.replicate.origin},{far.defapi.origin}"
    keys = json.dumps({far.replicate.origin: KEY, far.defapi.origin: KEY})
    far.replicate.hooks_to = api.url
    reach = {
        "LIMNER_PUBLIC_URL": PUBLIC,
        "LIMNER_EGRESS_PLAIN_ORIGINS": origins,
        "LIMNER_EGRESS_ALLOW_ORIGINS": origins,
        "LIMNER_PROVIDER_KEYS": keys,
    }
    cluster.worker(**reach)  # type: ignore[arg-type]
    api.wait()
    yield api
    cluster.end()


@dataclass
class Shop:
    """The tenant's own catalog, and its end user."""

    db: Database
    tenant: Tenant
    far: Far
    client: Client

    async def sell(
        self, kind: str, *providers: tuple[str, dict[str, Any]], schema: dict[str, Any] | None = None
    ) -> None:
        """`providers`: adapter and configuration, in order of priority; each is named as its adapter."""
        schema = schema or offers.SCHEMAS[kind]  # type: ignore[index]
        async with self.db.tenant_tx(self.tenant.org_id, "limner_operator") as tx:
            await catalog.put_model(
                tx, {"name": OWN, "display_name": "Own", "kind": kind, "input_schema": schema, "price_mc": MC}
            )
            for place, (name, config) in enumerate(providers, start=1):
                url = self.far.replicate.url if name == "replicate" else self.far.defapi.url
                facts = {"name": name, "display_name": name, "adapter": name, "base_url": url, "config": QUICK | config}
                await catalog.put_provider(tx, facts)
                model = "acme/painter" if name == "replicate" else "google/nano-banana"
                await catalog.put_route(tx, OWN, name, provider_model=model, priority=place, cost_micro_usd=3000)

    async def order(self, **wanted: Any) -> str:
        accepted = await self.client.generate(OWN, input={"prompt": "a hare"} | wanted)
        assert accepted.status == 202, accepted.body
        return str(accepted.json["job_id"])

    async def buy(self, **wanted: Any) -> tuple[Any, Any]:
        """The closed job and its receipt."""
        job = await self.client.finished(await self.order(**wanted))
        assert await acts.books(self.db, self.tenant.org_id) == {}
        return job, (await self.client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json


@pytest.fixture
def shop(db: Database, tenant: Tenant, api: ApiProcess, far: Far, http: aiohttp.ClientSession) -> Shop:
    for one in (far.replicate, far.defapi):
        one.forget()
    far.replicate.hooked.clear()
    far.replicate.done = None
    return Shop(db, tenant, far, Client(http, api.url, tenant.api_key))


def told(receipt: Any) -> list[tuple[str, str, str | None]]:
    return [(a["provider"], a["outcome"], a.get("error", {}).get("code")) for a in receipt["attempts"]]


async def test_a_picture_of_replicates_is_kept_charged_and_told(shop: Shop) -> None:
    await shop.sell("image.generate", ("replicate", {}))

    job, receipt = await shop.buy()

    assert (job["status"], job["provider_used"], job["tokens_charged"]) == ("succeeded", "replicate", 1)
    assert (await shop.client.call("GET", job["outputs"][0]["url"].removeprefix(PUBLIC))).body.startswith(b"\x89PNG")
    assert [(use["kind"], use["quantity"], use["unit"]) for use in receipt["usage"]] == [
        ("image", 1, "image"), ("predict_time", 4520, "millisecond"),
    ]  # fmt: skip
    assert [t["kind"] for t in receipt["transfers"]] == ["hold", "post"]


async def test_a_picture_of_defapis_is_kept_charged_and_told(shop: Shop) -> None:
    await shop.sell("image.edit", ("defapi", {}))

    job, receipt = await shop.buy(images=[PICTURE])

    assert (job["status"], job["provider_used"], job["tokens_charged"]) == ("succeeded", "defapi", 1)
    assert shop.far.defapi.created[0].asked["images"][0].startswith("data:image/png;base64,")
    assert ("consumed", 40_000) in [(use["kind"], use["quantity"]) for use in receipt["usage"]]


async def test_a_picture_is_enlarged_by_a_routes_own_names(shop: Shop) -> None:
    named = {"input": {"image": "image", "scale": "scale"}, "constants": {"output_format": "png"}}
    await shop.sell("image.upscale", ("replicate", named), schema=UPSCALE.input_schema)

    accepted = await shop.client.generate(OWN, input={"images": [PICTURE], "scale": 4})
    job = await shop.client.finished(accepted.json["job_id"])

    assert job["status"] == "succeeded"
    assert shop.far.replicate.created[0].asked["input"] == {"image": PICTURE, "scale": 4, "output_format": "png"}


async def test_mj10_a_running_job_that_is_cancelled_calls_its_prediction_off(shop: Shop) -> None:
    await shop.sell("image.generate", ("replicate", {}))
    shop.far.replicate.ends("hangs")
    job_id = await shop.order()
    [task] = await eventually(lambda: shop.far.replicate.created)
    await eventually(lambda: task.polls)

    answer = await shop.client.call("POST", f"/api/v1/jobs/{job_id}/cancel")

    assert answer.json["status"] == "requested", answer.body
    assert (await shop.client.finished(job_id))["status"] == "cancelled"
    await eventually(lambda: task.cancelled)
    wallet = await acts.wallet(shop.db, shop.tenant)
    assert (wallet.available_mc, wallet.held_mc) == (shop.tenant.credits * MC, 0)


async def test_a_task_that_takes_too_long_is_called_off_and_the_next_provider_asked(shop: Shop) -> None:
    await shop.sell("image.generate", ("replicate", {"timeout_s": 1}), ("defapi", {}))
    shop.far.replicate.ends("hangs")

    job, receipt = await shop.buy()

    assert (job["provider_used"], job["tokens_charged"]) == ("defapi", 1)
    assert told(receipt) == [("replicate", "error", "provider_timeout"), ("defapi", "done", None)]
    assert shop.far.replicate.created[0].cancelled


async def test_ps3_a_result_within_the_network_is_not_fetched_and_the_next_provider_asked(shop: Shop) -> None:
    await shop.sell("image.generate", ("replicate", {}), ("defapi", {}))
    shop.far.replicate.ends(["https://169.254.169.254/latest/meta-data/iam"])

    job, receipt = await shop.buy()

    assert told(receipt) == [("replicate", "error", "result_not_allowed"), ("defapi", "done", None)]
    assert "169.254" not in json.dumps([job, receipt])


async def test_mj9_a_task_that_cannot_be_asked_after_is_asked_after_by_the_next_run(shop: Shop) -> None:
    await shop.sell("image.generate", ("defapi", {"timeout_s": 1}))
    shop.far.defapi.then(*[Says(500)] * 40, on="poll")
    job_id = await shop.order()
    [task] = await eventually(lambda: shop.far.defapi.created)
    await eventually(lambda: is_in(shop, job_id, "queued"))
    shop.far.defapi.calm_down()

    job = await shop.client.finished(job_id)

    assert (job["status"], job["tokens_charged"], len(shop.far.defapi.created)) == ("succeeded", 1, 1)
    assert task.polls >= 1
    receipt = (await shop.client.call("GET", f"/api/v1/jobs/{job_id}/receipt")).json
    assert (receipt["runs"], told(receipt)) == (2, [("defapi", "done", None)])


async def is_in(shop: Shop, job_id: str, state: str) -> bool:
    return bool((await shop.client.call("GET", f"/api/v1/jobs/{job_id}")).json["status"] == state)


async def test_a_hook_ends_the_waiting_and_the_provider_is_asked_for_the_truth(shop: Shop, far: Far) -> None:
    await shop.sell("image.generate", ("replicate", SELDOM))
    far.replicate.done = asyncio.Event()
    far.replicate.ends("hangs")
    began = time.monotonic()
    job_id = await shop.order()
    [task] = await eventually(lambda: far.replicate.created)
    assert task.asked["webhook"].startswith("https://limner.example/hooks/replicate/")
    assert task.asked["webhook_events_filter"] == ["start", "completed"]
    await eventually(lambda: task.polls)

    far.replicate.done.set()

    assert (await shop.client.finished(job_id))["status"] == "succeeded"
    assert time.monotonic() - began < SLOW_S
    assert set(far.replicate.hooked) == {204}


async def test_mj9_a_task_whose_name_was_lost_is_brought_back_by_its_hook(
    shop: Shop, far: Far, superuser: psycopg.Connection
) -> None:
    await shop.sell("image.generate", ("replicate", SELDOM))
    far.replicate.then("hangs up afterwards")

    job = await shop.client.finished(await shop.order())

    assert (job["status"], job["tokens_charged"], len(far.replicate.created)) == ("succeeded", 1, 1)
    row = superuser.execute(CALL, [shop.tenant.org_id]).fetchall()
    assert row == [("done", far.replicate.created[0].id, 1)]


async def test_mj9_a_forged_hook_changes_nothing(shop: Shop, far: Far, superuser: psycopg.Connection) -> None:
    await shop.sell("image.generate", ("replicate", SELDOM))
    far.replicate.ends("hangs")
    job_id = await shop.order()
    [task] = await eventually(lambda: far.replicate.created)
    await eventually(lambda: task.polls == 2)  # the second at its start, by the provider's own hook
    before = (superuser.execute(CALL, [shop.tenant.org_id]).fetchall(), task.polls)
    path = urlsplit(task.asked["webhook"]).path
    prefix, _, token = path.rpartition("/")
    packed, _, signature = token.partition(".")
    forged = [
        f"{prefix}/{packed}.{signature[::-1]}", f"{prefix}/{packed[:-4]}AAAA.{signature}", f"{prefix}/x", f"{prefix}/.",
        f"{prefix}/{'A' * 5000}", f"{prefix}/%00.%ff", path.replace("replicate", "defapi"), f"{prefix}/{packed}", f"{prefix}/é.ü",
    ]  # fmt: skip

    async with aiohttp.ClientSession() as http:
        statuses = []
        for where in forged:
            async with http.post(far.replicate.hooks_to + where, json={"id": "evil1", "status": "succeeded"}) as answer:
                statuses.append(answer.status)
        bad = []
        for body in (b"", b"[]", b"{", b'{"id": "../x"}', b'{"id": 7}'):
            async with http.post(far.replicate.hooks_to + path, data=body) as answer:
                bad.append(answer.status)
        async with http.get(far.replicate.hooks_to + path) as answer:
            got = answer.status
    await asyncio.sleep(0.3)

    assert (set(statuses), set(bad), got) == ({404}, {400}, 405)
    assert (superuser.execute(CALL, [shop.tenant.org_id]).fetchall(), task.polls) == before
    cancelled: Any = await shop.client.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    assert cancelled.json["status"] == "requested"


async def test_a_true_hook_that_lies_is_not_believed(shop: Shop, far: Far, superuser: psycopg.Connection) -> None:
    """Another name is not taken in the place of the one that is known, and a success is one when the provider says so itself."""
    await shop.sell("image.generate", ("replicate", SELDOM))
    far.replicate.done = asyncio.Event()
    far.replicate.ends("hangs")
    job_id = await shop.order()
    [task] = await eventually(lambda: far.replicate.created)
    await eventually(lambda: task.polls == 2)  # the second at its start, by the provider's own hook

    assert (
        await far.replicate.post(task, {"id": "evil1", "status": "succeeded", "output": ["https://evil.example/x.png"]})
        == 204
    )

    await eventually(lambda: task.polls == 3)
    assert superuser.execute(CALL, [shop.tenant.org_id]).fetchall() == [("accepted", task.id, 1)]
    assert (await shop.client.call("GET", f"/api/v1/jobs/{job_id}")).json["status"] == "running"
    far.replicate.done.set()
    job = await shop.client.finished(job_id)
    assert (job["status"], "evil" in json.dumps(job)) == ("succeeded", False)
    assert await far.replicate.post(task, {"id": task.id}) == 204, (
        "the job is over: nothing to do, and no error for the provider"
    )
    assert await acts.books(shop.db, shop.tenant.org_id) == {}
