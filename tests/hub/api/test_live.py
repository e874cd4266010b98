"""Following a job over HTTP, and reading an app's log."""

import asyncio
from typing import Any
from uuid import UUID

import aiohttp
import jsonschema_rs
import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import events, jobs
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.running import Api, Client, Process

INPUT: dict[str, Any] = {"prompt": "A quiet harbour"}
LIVED = ["job.started", "job.completed"]


async def ordered(client: Client, **fields: Any) -> str:
    answer = await client.generate("local/canvas", input=INPUT, **fields)
    assert answer.status == 202, answer.body
    return str(answer.json["job_id"])


async def followed(client: Client, job_id: str, last_id: str | None = None) -> list[tuple[str | None, str, Any]]:
    """The stream until it ends, without comments and progress."""
    async with asyncio.timeout(30):
        return [one async for one in client.follow(job_id, last_id) if one[1] not in {":", "progress"}]


async def test_a_stream_tells_a_jobs_life_and_ends_with_the_whole_job(client: Client, worker: Process) -> None:
    job_id = await ordered(client)

    told = await followed(client, job_id)

    assert [name for _, name, _ in told] == LIVED
    for position, name, body in told:
        assert (int(position or 0), name) == (body["seq"], body["type"])
        jsonschema_rs.validate(dict(events.ANNOUNCED[name].data), body["data"])
    ended = told[-1][2]
    job = (await client.call("GET", f"/api/v1/jobs/{job_id}")).json
    assert (ended["data"]["status"], ended["data"]["tokens_charged"]) == ("succeeded", job["tokens_charged"])
    assert ended["job"] == job


async def test_a_stream_taken_up_again_tells_what_is_left_and_nothing_twice(client: Client, worker: Process) -> None:
    job_id = await ordered(client)
    (first, _, _), (last, _, _) = await followed(client, job_id)

    rest = await followed(client, job_id, first)
    nothing = await client.call("GET", f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(last)})

    assert [(position, name) for position, name, _ in rest] == [(last, "job.completed")]
    assert (nothing.status, nothing.body) == (204, b"")


async def test_progress_is_told_while_a_run_lasts(client: Client, worker: Process) -> None:
    answer = await client.generate("local/canvas", input={"prompt": "A wide sea", "num_outputs": 4})

    told = [one async for one in client.follow(answer.json["job_id"])]

    steps = [body for _, name, body in told if name == "progress"]
    assert all(0 <= body["percent"] <= 100 and body["stage"] for body in steps)
    assert [position for position, name, _ in told if name == "progress"] == [None] * len(steps)
    assert told[-1][1] == "job.completed"


async def test_everybody_who_follows_is_told_of_a_cancel(client: Client, db: Database, worker: Process) -> None:
    job_id = await ordered(client, run_at=await in_an_hour(db))
    streams = [asyncio.create_task(followed(client, job_id)) for _ in range(3)]
    await asyncio.sleep(0.2)

    cancelled = await client.call("POST", f"/api/v1/jobs/{job_id}/cancel")

    assert cancelled.json["status"] == "cancelled"
    for told in await asyncio.gather(*streams):
        assert [(name, body["data"]["code"]) for _, name, body in told] == [("job.cancelled", "cancelled")]
        assert told[0][2]["job"]["status"] == "cancelled"


async def in_an_hour(db: Database) -> str:
    async with db.system_tx("limner_api", "a test reads the clock") as tx:
        row = await tx.get(
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC' + interval '1 h', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at"
        )
    return str(row["at"])


@pytest.mark.parametrize("given", ["-1", "x", "1.0", "9" * 20, "9223372036854775808"])
async def test_a_place_that_is_none_is_refused(client: Client, db: Database, tenant: Tenant, given: str) -> None:
    job_id = (await acts.submit(db, tenant)).job_id

    stream = await client.call("GET", f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": given})
    client.user = None
    page = await client.call("GET", f"/api/v1/events?after={given}")

    assert (stream.status, stream.json["details"]) == (400, {"/Last-Event-ID": ["must be the number of an event"]})
    assert (page.status, page.json["details"]) == (400, {"/after": ["must be the number of an event"]})


async def test_ta1_a_foreign_job_cannot_be_followed(client: Client, db: Database, make_tenant: MakeTenant) -> None:
    other = await make_tenant()
    job_id = (await acts.submit(db, other)).job_id

    foreign = await client.call("GET", f"/api/v1/jobs/{job_id}/events")
    absent = await client.call("GET", "/api/v1/jobs/019a1f85-126f-701c-b732-d9e071145302/events")
    client.user = "bob"
    mine = await client.call("GET", f"/api/v1/jobs/{job_id}/events")

    assert foreign.status == absent.status == mine.status == 404
    assert foreign.json | {"request_id": ""} == absent.json | {"request_id": ""}


async def test_an_app_reads_its_log_page_by_page(client: Client, worker: Process) -> None:
    made = [await ordered(client) for _ in range(3)]
    for job_id in made:
        await followed(client, job_id)
    client.user = None

    read: list[Any] = []
    after = 0
    while True:
        page = (await client.call("GET", f"/api/v1/events?after={after}&limit=2")).json
        read += page["events"]
        after = page["next_after"]
        if not page["more"]:
            break

    assert [event["seq"] for event in read] == list(range(1, 7))
    for job_id in made:
        assert [event["type"] for event in read if event["data"]["job_id"] == job_id] == LIVED
    assert (await client.call("GET", f"/api/v1/events?after={after}")).json == {
        "events": [], "next_after": after, "more": False,
    }  # fmt: skip


async def test_the_log_is_the_whole_apps(client: Client, make_tenant: MakeTenant) -> None:
    as_user = await client.call("GET", "/api/v1/events")
    client.user, client.api_key = None, (await make_tenant(scopes=("jobs:create",))).api_key
    unscoped = await client.call("GET", "/api/v1/events")

    assert (as_user.status, list(as_user.json["details"])) == (400, ["/X-User-ID"])
    assert (unscoped.status, unscoped.json["code"]) == (403, "missing_scope")


async def test_more_streams_than_may_be_open_are_refused_by_name(
    server: Server, http: aiohttp.ClientSession, db: Database, tenant: Tenant, make_tenant: MakeTenant
) -> None:
    api = Api(
        server.home,
        LIMNER_DATABASE_URL=server.url,
        LIMNER_MAX_STREAMS="3",
        LIMNER_MAX_STREAMS_PER_APP="2",
        LIMNER_STREAM_HEARTBEAT_S="0.2",
    )
    try:
        client = Client(http, api.url, tenant.api_key)
        job_id = await ordered(client, run_at=await in_an_hour(db))
        path = f"/api/v1/jobs/{job_id}/events"
        streams = [client.follow(job_id) for _ in range(2)]
        signs = [await anext(stream) for stream in streams]
        refused = await client.call("GET", path)

        assert signs == [(None, ":", "nothing new")] * 2
        assert (refused.status, refused.json["code"]) == (503, "too_many_streams")
        assert (refused.json["limit"], refused.json["limit_size"]) == ("streams_per_app", 2)
        assert refused.headers["retry-after"]
        await streams[0].aclose()
        async with asyncio.timeout(10):
            while (await http.get(api.url + path, headers={"X-API-Key": tenant.api_key})).status == 503:
                await asyncio.sleep(0.05)
        await streams[1].aclose()
    finally:
        api.stop()


async def test_streams_end_when_their_process_is_to_end(
    server: Server, http: aiohttp.ClientSession, db: Database, tenant: Tenant
) -> None:
    api = Api(server.home, LIMNER_DATABASE_URL=server.url, LIMNER_STREAM_HEARTBEAT_S="0.2")
    client = Client(http, api.url, tenant.api_key)
    stream = client.follow(await ordered(client, run_at=await in_an_hour(db)))
    await anext(stream)

    api.popen.terminate()

    async with asyncio.timeout(10):
        async for _, name, _ in stream:
            assert name == ":"
    assert api.popen.wait(10) == 0


async def test_an_event_that_nobody_told_of_is_found_by_the_poll(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    """No NOTIFY is sent: what is in the log reaches the stream all the same."""
    job_id = UUID(await ordered(client, run_at=await in_an_hour(db)))
    stream = asyncio.create_task(followed(client, str(job_id)))
    await asyncio.sleep(0.1)

    async with db.tenant_single(tenant.org_id) as tx:
        assert await jobs.cancel(tx, tenant.app.id, job_id) == "cancelled"
    async with asyncio.timeout(10):
        while not acts.count(superuser, "SELECT count(*) FROM limner.event_order WHERE org_id = %s", tenant.org_id):
            async with db.system_tx("limner_dispatch", "a test relays") as tx:
                await tx.get("SELECT placed FROM limner.relay_events(2000)")
            await asyncio.sleep(0.02)

    assert [name for _, name, _ in await stream] == ["job.cancelled"]
