"""Jobs a minute of user, app and organization, open jobs, reads: how many pass a race, what an answer tells, what a refusal costs."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest

from limner.db.pools import Database
from tests import acts
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.api.conftest import CheckedClient
from tests.running import Answer, Api, Client
from tests.web import stored
from tests.web.pictures import png, uri

GENERATE = "/api/v1/generate"
GOOD: dict[str, Any] = {"model": "local/canvas", "input": {"prompt": "a hare"}}
RATE_HEADERS = {"ratelimit", "ratelimit-policy", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
Limited = Callable[..., Awaitable[Tenant]]


@pytest.fixture
def limited(make_tenant: MakeTenant, superuser: psycopg.Connection) -> Limited:
    """A tenant with limits of its own; `alone`: one whose submits never share a commit."""

    async def make(*, alone: bool = False, credits: int = 1000, max_open: int | None = None, org: int | None = None,
                   **app: int) -> Tenant:  # fmt: skip
        tenant = await make_tenant(credits=credits)
        for column, value in app.items():
            superuser.execute(f"UPDATE limner.app SET {column} = %s WHERE org_id = %s", [value, tenant.org_id])
        superuser.execute(
            "UPDATE limner.organization SET max_open = %s, jobs_per_min = %s WHERE org_id = %s",
            [max_open or (1_000_000 if alone else None), org, tenant.org_id],
        )
        return tenant

    return make


async def race(client: Client, count: int, body: dict[str, Any] = GOOD) -> list[Answer]:
    return list(await asyncio.gather(*(client.call("POST", GENERATE, body) for _ in range(count))))


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


def refilled(superuser: psycopg.Connection, tenant: Tenant, per_min: int) -> int:
    """What came back into a bucket while jobs were accepted: none, unless this machine was very busy."""
    return acts.count(
        superuser,
        "SELECT floor(extract(epoch FROM max(created_at) - min(created_at)) * %s / 60)::int FROM limner.job WHERE org_id = %s",
        per_min,
        tenant.org_id,
    )


@pytest.mark.parametrize("alone", [False, True], ids=["sharing commits", "alone"])
async def test_of_sixty_racing_submits_of_one_user_thirty_pass(
    client: Client, limited: Limited, superuser: psycopg.Connection, db: Database, alone: bool
) -> None:
    tenant = await limited(alone=alone, user_jobs_per_min=30)
    client.api_key = tenant.api_key

    seen = statuses(await race(client, 60))

    assert seen.keys() == {202, 429}
    assert 30 <= seen[202] <= 30 + refilled(superuser, tenant, 30)
    rows = stored.rows(superuser, tenant.org_id)
    assert rows["job"] == rows["job_queue"] == seen[202]
    assert rows["held"] == seen[202] * 1000
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.parametrize("alone", [False, True], ids=["sharing commits", "alone"])
async def test_an_apps_limit_holds_over_all_its_users(
    client: Client, limited: Limited, superuser: psycopg.Connection, db: Database, alone: bool
) -> None:
    tenant = await limited(alone=alone, jobs_per_min=20)
    for user in ("bo", "cy", "di"):
        await acts.grant(db, tenant, 50_000, user=user)
    clients = [CheckedClient(client.http, client.url, tenant.api_key, user) for user in ("ann", "bo", "cy", "di")]

    answers = [a for group in await asyncio.gather(*(race(one, 12) for one in clients)) for a in group]

    seen = statuses(answers)
    assert 20 <= seen[202] <= 20 + refilled(superuser, tenant, 20)
    assert {a.json["limit"] for a in answers if a.status == 429} == {"app"}
    assert stored.rows(superuser, tenant.org_id)["job"] == seen[202]


async def test_an_organizations_limit_holds_over_its_apps(
    client: Client, limited: Limited, superuser: psycopg.Connection
) -> None:
    tenant = await limited(org=10)
    client.api_key = tenant.api_key

    answers = await race(client, 25)

    assert 10 <= statuses(answers)[202] <= 10 + refilled(superuser, tenant, 10)
    assert {a.json["limit"] for a in answers if a.status == 429} == {"organization"}


async def test_a_limit_that_does_not_divide_a_minute_lets_all_of_it_pass(client: Client, limited: Limited) -> None:
    client.api_key = (await limited(user_jobs_per_min=7)).api_key

    assert statuses(await race(client, 7)) == {202: 7}


async def test_a_large_limit_is_kept_in_eight_pieces_and_full_ones_refuse(
    client: Client, limited: Limited, superuser: psycopg.Connection
) -> None:
    """Pieces that are used up for an hour let nobody pass; a full one does, whichever connection asks."""
    tenant = await limited(jobs_per_min=8000)
    client.api_key = tenant.api_key
    superuser.execute(
        "INSERT INTO limner.rate_counter SELECT %s, %s, piece, now() + interval '1 hour' FROM generate_series(0, 7) piece",
        [tenant.org_id, tenant.app.id],
    )
    assert statuses(await race(client, 10)) == {429: 10}
    superuser.execute("UPDATE limner.rate_counter SET tat = now() WHERE org_id = %s AND shard = 7", [tenant.org_id])

    accepted = await race(client, 40)

    assert statuses(accepted) == {202: 40}  # of 1,000 in the piece that is left
    left = [int(a.headers["x-ratelimit-remaining"]) for a in accepted]
    assert all(0 < n <= 8000 for n in left)
    assert acts.count(superuser, "SELECT count(*) FROM limner.rate_counter WHERE org_id = %s", tenant.org_id) == 8


async def test_eight_pieces_together_hold_what_the_limit_says(limited: Limited, superuser: psycopg.Connection) -> None:
    """Full buckets give out 6,000 tokens, and what flows back while they do: a hundred a second."""
    tenant = await limited(jobs_per_min=6000)
    with superuser.transaction():
        superuser.execute("SELECT set_config('limner.entered', %s, true)", [str(tenant.org_id)])
        row = superuser.execute(
            "WITH asked AS MATERIALIZED (SELECT clock_timestamp() AS at, limner._take_token(%s, %s, 6000) AS full_at"
            " FROM generate_series(1, 8000)) SELECT count(full_at), extract(epoch FROM max(at) - min(at)) FROM asked",
            [tenant.org_id, tenant.app.id],
        ).fetchone()

    assert row is not None
    taken, seconds = row
    assert 6000 <= taken <= 6000 + 100 * float(seconds) + 16


async def test_a_refusal_costs_nothing_writes_nothing_and_makes_nobody(
    client: Client, limited: Limited, superuser: psycopg.Connection
) -> None:
    tenant = await limited(jobs_per_min=2, user_jobs_per_min=1)
    client.api_key = tenant.api_key
    assert statuses(await race(client, 1)) == {202: 1}

    for user in ("ann", "stranger"):
        client.user = user
        before = stored.rows(superuser, tenant.org_id)
        counters = superuser.execute("SELECT * FROM limner.rate_counter WHERE org_id = %s", [tenant.org_id]).fetchall()
        if user == "stranger":  # the app's bucket is made empty: the stranger is refused by it before it exists
            superuser.execute(
                "UPDATE limner.rate_counter SET tat = now() + interval '1 h' WHERE org_id = %s", [tenant.org_id]
            )
            counters = superuser.execute(
                "SELECT * FROM limner.rate_counter WHERE org_id = %s", [tenant.org_id]
            ).fetchall()
        answer = await client.call("POST", GENERATE, GOOD)

        assert (answer.status, answer.json["code"]) == (429, "rate_limited")
        assert answer.json["limit"] == ("user" if user == "ann" else "app")
        assert stored.rows(superuser, tenant.org_id) == before
        assert (
            superuser.execute("SELECT * FROM limner.rate_counter WHERE org_id = %s", [tenant.org_id]).fetchall()
            == counters
        )


async def test_a_replay_is_never_429_nor_402_and_carries_no_limits(
    client: Client, limited: Limited, superuser: psycopg.Connection
) -> None:
    tenant = await limited(credits=1, user_jobs_per_min=1, max_open=1)
    client.api_key = tenant.api_key
    key = {"Idempotency-Key": "one"}
    first = await client.call("POST", GENERATE, GOOD, headers=key)
    assert (await client.call("POST", GENERATE, GOOD)).status == 429

    again = await client.call("POST", GENERATE, GOOD, headers=key)

    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (202, first.body, "true")
    assert not RATE_HEADERS & {name.lower() for name in again.headers}
    assert {name.lower() for name in first.headers} >= RATE_HEADERS
    superuser.execute("UPDATE limner.wallet SET rate_tat = now() WHERE org_id = %s", [tenant.org_id])
    superuser.execute("UPDATE limner.organization SET max_open = NULL WHERE org_id = %s", [tenant.org_id])
    assert (await client.call("POST", GENERATE, GOOD, headers=key)).status == 202


async def test_limits_come_before_the_balance(client: Client, limited: Limited) -> None:
    tenant = await limited(credits=1, user_jobs_per_min=1)
    client.api_key = tenant.api_key
    assert (await client.call("POST", GENERATE, GOOD)).status == 202

    assert (await client.call("POST", GENERATE, GOOD)).status == 429


async def test_open_jobs_are_capped_until_one_is_over(client: Client, limited: Limited) -> None:
    client.api_key = (await limited(max_open=3)).api_key
    accepted = [await client.call("POST", GENERATE, GOOD) for _ in range(3)]

    refused = await client.call("POST", GENERATE, GOOD)
    assert (refused.status, refused.json["limit"], refused.json["limit_size"]) == (429, "open_jobs", 3)
    assert int(refused.headers["retry-after"]) == refused.json["retry_after"] >= 1

    await client.call("POST", f"/api/v1/jobs/{accepted[0].json['job_id']}/cancel")
    assert (await client.call("POST", GENERATE, GOOD)).status == 202


async def test_racing_submits_of_many_users_do_not_pass_the_cap_of_open_jobs(
    client: Client, limited: Limited, superuser: psycopg.Connection, db: Database
) -> None:
    tenant = await limited(max_open=5)
    for user in ("bo", "cy", "di"):
        await acts.grant(db, tenant, 50_000, user=user)
    clients = [CheckedClient(client.http, client.url, tenant.api_key, user) for user in ("ann", "bo", "cy", "di")]

    answers = [a for group in await asyncio.gather(*(race(one, 6) for one in clients)) for a in group]

    assert statuses(answers) == {202: 5, 429: 19}
    assert stored.rows(superuser, tenant.org_id)["job_queue"] == 5


@pytest.mark.parametrize("alone", [False, True], ids=["sharing commits", "alone"])
async def test_an_answer_tells_what_is_left_of_each_limit(client: Client, limited: Limited, alone: bool) -> None:
    tenant = await limited(alone=alone, jobs_per_min=100, user_jobs_per_min=30)
    client.api_key = tenant.api_key

    first, second = [await client.call("POST", GENERATE, GOOD) for _ in range(2)]

    assert first.headers["ratelimit-policy"] == '"user";q=30;w=60, "app";q=100;w=60'
    assert re.fullmatch(r'"user";r=29;t=[123], "app";r=9[89];t=[12]', first.headers["ratelimit"])
    assert (first.headers["x-ratelimit-limit"], first.headers["x-ratelimit-remaining"]) == ("30", "29")
    assert 28 <= int(second.headers["x-ratelimit-remaining"]) <= 29
    assert 1 <= int(second.headers["x-ratelimit-reset"]) <= 4


async def test_a_picture_and_a_new_user_are_counted_like_all(client: Client, limited: Limited) -> None:
    tenant = await limited(user_jobs_per_min=2)
    client.api_key = tenant.api_key
    picture = {"model": "local/describe", "input": {"images": [uri(png())]}}

    answers = [await client.call("POST", GENERATE, body) for body in (picture, GOOD, picture, GOOD)]

    assert [a.status for a in answers] == [202, 202, 429, 429]
    assert answers[0].headers["x-ratelimit-remaining"] == "1"


async def test_a_refusal_says_which_limit_how_large_and_when_to_come_again(client: Client, limited: Limited) -> None:
    client.api_key = (await limited(user_jobs_per_min=2, jobs_per_min=50)).api_key
    await race(client, 2)

    refused = await client.call("POST", GENERATE, GOOD)

    assert refused.status == 429
    assert (refused.json["limit"], refused.json["limit_size"]) == ("user", 2)
    assert 1 <= refused.json["retry_after"] <= 30
    assert refused.headers["retry-after"] == str(refused.json["retry_after"])
    assert refused.headers["ratelimit-policy"] == '"user";q=2;w=60, "app";q=50;w=60'
    assert re.fullmatch(r'"user";r=0;t=\d+', refused.headers["ratelimit"])
    assert refused.headers["x-ratelimit-remaining"] == "0"


async def test_without_limits_there_are_no_headers_of_them(client: Client) -> None:
    answer = await client.call("POST", GENERATE, GOOD)

    assert not RATE_HEADERS & {name.lower() for name in answer.headers}


@pytest.fixture(scope="module")
def strict_api(server: Server) -> Iterator[Api]:
    """An API with limits for everybody: of submits as they are when nobody sets them, of reads a small one."""
    process = Api(
        server.home, LIMNER_DATABASE_URL=server.url, LIMNER_USER_JOBS_PER_MIN="30", LIMNER_APP_JOBS_PER_MIN="1000",
        LIMNER_READS_PER_MIN="5",
    )  # fmt: skip
    yield process
    process.stop()


async def test_the_installations_limits_hold_where_an_app_has_none(
    client: Client, strict_api: Api, limited: Limited
) -> None:
    plain, generous = await limited(), await limited(user_jobs_per_min=500)
    policies = []
    for tenant in (plain, generous):
        one = CheckedClient(client.http, strict_api.url, tenant.api_key)
        policies.append((await one.call("POST", GENERATE, GOOD)).headers["ratelimit-policy"])

    assert policies == ['"user";q=30;w=60, "app";q=1000;w=60', '"user";q=500;w=60, "app";q=1000;w=60']


async def test_reads_of_a_key_have_a_limit_of_their_own(
    client: Client, strict_api: Api, tenant: Tenant, make_tenant: MakeTenant
) -> None:
    mine = CheckedClient(client.http, strict_api.url, tenant.api_key)
    theirs = CheckedClient(client.http, strict_api.url, (await make_tenant()).api_key)

    answers = [await mine.call("GET", path) for path in ("/api/v1/models", "/api/v1/jobs", "/api/v1/users/ann") * 4]

    refused = answers[-1]
    assert [a.status for a in answers[:5]] == [200] * 5
    assert (refused.status, refused.json["code"], refused.json["limit"]) == (429, "rate_limited", "reads")
    assert (refused.json["limit_size"], refused.headers["ratelimit-policy"]) == (5, '"reads";q=5;w=60')
    assert refused.headers["retry-after"] == str(refused.json["retry_after"])
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert (await theirs.call("GET", "/api/v1/models")).status == 200
    assert (await mine.call("POST", GENERATE, GOOD)).status == 202, "reads are counted apart from work"
