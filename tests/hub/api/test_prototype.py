"""Defects of the prototype's sample code that this API must not have: each test fails on the prototype's way of doing it."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pyvips

from limner.db.pools import Database
from limner.hub import executor
from limner.hub.loop import LoopSettings, WorkerLoop
from limner.hub.providers.base import CallClass, Output, ProviderCall, ProviderResult
from limner.kit.cpu import CpuPool
from limner.media.store import ObjectStore
from tests import acts
from tests.conftest import MakeTenant, Server
from tests.hub.api.test_reading import second_app
from tests.hub.doubles import imports
from tests.running import Client
from tests.web import stored

GENERATE = "/api/v1/generate"
CANVAS: dict[str, Any] = {"model": "local/canvas", "input": {"prompt": "a hare"}}


async def test_generate_answers_202_and_not_200(client: Client) -> None:
    answer = await client.call("POST", GENERATE, CANVAS)
    again = await client.call("POST", GENERATE, {**CANVAS, "idempotency_key": "x"})
    replay = await client.call("POST", GENERATE, {**CANVAS, "idempotency_key": "x"})

    assert [a.status for a in (answer, again, replay)] == [202, 202, 202]


async def test_an_idempotency_key_with_another_body_is_refused_and_never_answers_the_old_job(client: Client) -> None:
    first = await client.call("POST", GENERATE, {**CANVAS, "idempotency_key": "req_abc123"})

    other = await client.call(
        "POST", GENERATE, {"model": "local/canvas", "input": {"prompt": "a fox"}, "idempotency_key": "req_abc123"}
    )

    assert other.status == 422
    assert first.json["job_id"].encode() not in other.body


async def test_copies_of_one_request_at_the_same_moment_make_one_job(client: Client) -> None:
    """The prototype looks the key up inside a JSON column, without a unique index, before it inserts."""
    answers = await asyncio.gather(
        *(client.call("POST", GENERATE, {**CANVAS, "idempotency_key": "burst"}) for _ in range(20))
    )

    assert len({answer.json["job_id"] for answer in answers}) == 1
    assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 999


async def test_parallel_requests_never_spend_a_credit_twice(client: Client, make_tenant: MakeTenant) -> None:
    """The prototype reads the balance and writes back an absolute value."""
    client.api_key = (await make_tenant(credits=7)).api_key

    answers = await asyncio.gather(*(client.call("POST", GENERATE, CANVAS) for _ in range(40)))

    assert Counter(answer.status for answer in answers) == {202: 7, 402: 33}
    assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 0


async def test_one_apps_promo_key_grants_in_another_app_too(
    client: Client, db: Database, make_tenant: MakeTenant
) -> None:
    """The prototype's ledger keys are globally unique: the second tenant's grant says success and grants nothing."""
    one, two = await make_tenant(credits=0), await make_tenant(credits=0)
    _, sibling = await second_app(db, one)
    client.user = None

    for key in (one.api_key, two.api_key, sibling):
        client.api_key = key
        granted = await client.call("POST", "/api/v1/users/ann/tokens", {"amount": 50, "idempotency_key": "promo_jan"})
        assert (granted.status, granted.json["new_balance"]) == (200, 50)
        assert (await client.call("GET", "/api/v1/users/ann")).json["token_balance"] == 50


@pytest.mark.parametrize("first", ["generate", "grant", "both"])
async def test_welcome_credits_are_given_once_however_many_requests_make_the_user(
    client: Client, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection, first: str
) -> None:
    """The prototype writes balance and ledger separately, after a find-or-create that two requests can both win."""
    tenant = await make_tenant(credits=0, welcome_mc=25_000)
    client.api_key, client.user = tenant.api_key, None

    async def generate() -> int:
        answer = await client.call("POST", GENERATE, CANVAS, headers={"X-User-ID": "new"})
        return answer.status

    async def grant() -> int:
        return (await client.call("POST", "/api/v1/users/new/tokens", {"amount": 2})).status

    calls = {"generate": [generate] * 16, "grant": [grant] * 16, "both": [generate, grant] * 8}[first]
    statuses = Counter(await asyncio.gather(*(call() for call in calls)))

    jobs, grants = calls.count(generate), calls.count(grant)
    assert statuses == {status: n for status, n in ((202, jobs), (200, grants)) if n}
    user = (await client.call("GET", "/api/v1/users/new")).json
    assert user["token_balance"] == 25 + 2 * grants - jobs
    welcomes = acts.count(
        superuser,
        "SELECT count(*) FROM limner.transfer WHERE org_id = %s AND reason = 'Welcome credits'",
        tenant.org_id,
    )
    assert welcomes == 1
    assert await acts.books(db, tenant.org_id) == {}


async def test_unknown_parameters_are_refused_and_not_passed_on(client: Client, superuser: psycopg.Connection) -> None:
    """The prototype lets provider parameters pass through: price one picture, have many made."""
    for extra in ("n", "num_images", "provider_params", "steps"):
        answer = await client.call("POST", GENERATE, {**CANVAS, "input": {"prompt": "a hare", extra: 9}})
        assert (answer.status, list(answer.json["details"])) == (400, [f"/input/{extra}"])
        assert (await client.call("POST", GENERATE, {**CANVAS, extra: 9})).status == 400


async def test_a_callers_priority_never_moves_another_apps_job(
    client: Client, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """The prototype hands a caller's priority to one queue of everybody."""
    acts.empty_queue(superuser)
    loud, quiet = await make_tenant(), await make_tenant()
    client.api_key = loud.api_key
    for _ in range(30):
        await client.call("POST", GENERATE, {**CANVAS, "priority": 1})
    client.api_key = quiet.api_key
    mine = [(await client.call("POST", GENERATE, {**CANVAS, "priority": p})).json["job_id"] for p in (100, 50)]

    claimed = [str(lease.job_id) for lease in await acts.claim(db, 4, lease_s=30)]

    assert set(mine) <= set(claimed)  # two of four, behind thirty jobs of the highest priority
    assert len(claimed) == 4


async def test_priority_orders_the_jobs_of_one_app(client: Client, db: Database, superuser: psycopg.Connection) -> None:
    acts.empty_queue(superuser)
    made = {
        p: (await client.call("POST", GENERATE, {**CANVAS, "priority": p})).json["job_id"] for p in (100, 10, 1, 50)
    }

    claimed = [str((await acts.claim(db, 1, lease_s=30))[0].job_id) for _ in range(4)]

    assert claimed == [made[p] for p in (1, 10, 50, 100)]


class Photographer:
    """A provider that answers with pictures of several formats."""

    name = "local"
    call_class = CallClass.A

    async def run(self, call: ProviderCall) -> ProviderResult:
        image = pyvips.Image.black(16, 8, bands=3).copy(interpretation="srgb")
        saved = [image.jpegsave_buffer(), image.webpsave_buffer(), image.pngsave_buffer(), image.gifsave_buffer()]
        return ProviderResult(tuple(Output(n, "image", data=bytes(data)) for n, data in enumerate(saved)))


async def test_outputs_have_their_true_type_and_are_not_all_called_png(
    client: Client, db: Database, server: Server, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    made = await client.call("POST", GENERATE, {"model": "local/canvas", "input": {"prompt": "x", "num_outputs": 4}})
    pool = CpuPool(1, 2 << 30, 30.0)
    store = ObjectStore(None, Path(server.home))
    loop = WorkerLoop(
        executor.resources(
            db, {"local": Photographer()}, store, pool, max_runs=3, backoff_s=0.1, imports=imports(pool)
        ),
        LoopSettings(slots=5, lease_s=30.0, heartbeat_s=10.0, shutdown_s=10.0),
    )
    running = asyncio.create_task(loop.run())
    job = await client.finished(made.json["job_id"])
    loop.stop()
    await running
    await pool.aclose()

    starts = {"image/jpeg": b"\xff\xd8\xff", "image/webp": b"RIFF", "image/png": b"\x89PNG"}
    ends = {"image/jpeg": ".jpg", "image/webp": ".webp", "image/png": ".png"}
    assert [output["media_type"] for output in job["outputs"]] == ["image/jpeg", "image/webp", "image/png", "image/png"]
    for output in job["outputs"]:
        served = await client.call("GET", output["url"])
        assert served.headers["content-type"] == output["media_type"]
        assert served.body.startswith(starts[output["media_type"]])
        assert output["url"].partition("?")[0].endswith(ends[output["media_type"]])


async def test_urls_in_a_request_are_never_fetched(client: Client, superuser: psycopg.Connection) -> None:
    """The prototype fetches images, outputs and webhook URLs without a guard: here a listener waits in vain."""
    called = 0

    async def listen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal called
        called += 1
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.png"
    bodies = [
        {"model": "local/describe", "input": {"images": [url]}}, {"model": "local/upscale", "input": {"images": [url]}},
        {**CANVAS, "webhook_url": url}, {"model": "local/canvas", "input": {"prompt": url}},
    ]  # fmt: skip
    codes = [(await client.call("POST", GENERATE, body)).json.get("code") for body in bodies]
    await asyncio.sleep(0.2)
    server.close()

    assert codes == ["destination_not_allowed"] * 3 + [None]
    assert called == 0


async def test_a_charge_and_its_job_are_one_commit(
    client: Client, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    """The prototype reserves, marks and enqueues in four commits over two stores. Here rows of all appear together."""
    tenant = await make_tenant(credits=100)
    client.api_key = tenant.api_key
    watching = True
    seen: set[tuple[int, int, int]] = set()
    conn = superuser
    query = (
        "SELECT (SELECT count(*) FROM limner.job WHERE org_id = %(o)s), (SELECT count(*) FROM limner.job_queue WHERE org_id = %(o)s),"
        " (SELECT count(*) FROM limner.transfer WHERE org_id = %(o)s AND kind = 'hold')"
    )

    def watch() -> None:
        while watching:
            seen.add(tuple(conn.execute(query, {"o": tenant.org_id}).fetchone() or ()))

    watcher = asyncio.create_task(asyncio.to_thread(watch))
    for _ in range(50):
        await client.call("POST", GENERATE, CANVAS)
    watching = False
    await watcher

    assert len(seen) > 5
    assert not [counts for counts in seen if len(set(counts)) != 1]
    rows = stored.rows(superuser, tenant.org_id)
    assert (rows["job"], rows["held"]) == (50, 50_000)


async def test_job_ids_are_no_secrets_and_no_door(client: Client, make_tenant: MakeTenant) -> None:
    """A job's id in another tenant's hands answers 404, for reading as for cancelling."""
    job_id = (await client.call("POST", GENERATE, CANVAS)).json["job_id"]
    assert UUID(job_id).version == 7
    client.api_key = (await make_tenant()).api_key

    for method, path in (("GET", ""), ("GET", "/receipt"), ("POST", "/cancel")):
        assert (await client.call(method, f"/api/v1/jobs/{job_id}{path}")).status == 404
