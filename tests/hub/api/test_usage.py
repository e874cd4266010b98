"""Usage over HTTP: exact at every moment, whatever is in the sums by day already; nobody else's; the same as JSON and as CSV."""

import asyncio
import csv
import io
import itertools
import random
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import jobs, runs, usage, usage_csv
from limner.hub.usage_rolling import UsageRolling, roll
from limner.kit import ids
from limner.kit.money import MC
from limner.tenancy import api_keys, organizations
from tests import acts
from tests.alone import superuser_conninfo
from tests.conftest import MakeTenant, Server, Tenant
from tests.hub.api.test_reading import second_app
from tests.running import Client
from tests.tiers import counts

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TRUTH = """
SELECT to_char(u.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day, a.slug AS app, e.external_id AS user_id, u.model, u.provider, u.kind,
       u.unit, u.seq, u.quantity, u.price_mc, u.cost_micro_usd
  FROM limner.usage_record u JOIN limner.app a ON a.org_id = u.org_id AND a.id = u.app_id
  LEFT JOIN limner.end_user e ON e.org_id = u.org_id AND e.id = u.end_user_id
 WHERE u.org_id = %s AND (%s::uuid IS NULL OR u.app_id = %s)
"""
BOTH = """
SELECT (SELECT coalesce(sum(u.price_mc), 0) + 1000000 * count(*) FILTER (WHERE u.seq = 1)
          FROM limner.usage_record u WHERE u.org_id = %(org)s)
     - (SELECT coalesce(sum(d.price_mc) + 1000000 * sum(d.jobs), 0) FROM limner.usage_day d WHERE d.org_id = %(org)s)
     - (SELECT coalesce(sum(t.price_mc) + 1000000 * sum(t.jobs), 0) FROM limner.usage_tail(%(org)s) t)
"""

CLOSE = """
SELECT limner._close(%s, %s, 1, 'succeeded', 700, '[]', NULL, NULL, 'local', '[{"kind": "image", "quantity": 1, "unit": "image"}]', %s, %s)
"""


async def use(
    db: Database, tenant: Tenant, *, model: str = "test/painter", provider: str = "local", user: str | None = "ann",
    charge_mc: int = MC, tokens: int = 0, cost: int | None = 10, app_id: UUID | None = None,
) -> UUID:  # fmt: skip
    """A job that was done: what was sold first, and what the provider says it read, if anything."""
    job_id = ids.new()
    request = replace(acts.request(tenant, price=-(-charge_mc // MC), user=user, app_id=app_id), model=model)
    async with db.tenant_single(tenant.org_id) as tx:
        await jobs.submit(tx, job_id, request)
    held = await acts.lease(db, job_id, lease_s=30)
    await acts.start(db, held)
    sold: list[dict[str, Any]] = [{"kind": "image", "quantity": 2, "unit": "image", "cost_micro_usd": cost}]
    if tokens:
        sold.append({"kind": "input_tokens", "quantity": tokens, "unit": "token"})
    async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
        await runs.finish(
            tx, held, runs.Closing("succeeded", charge_mc=charge_mc, outputs=[], provider=provider, usage=sold)
        )
    return job_id


async def lived(db: Database, tenant: Tenant, superuser: psycopg.Connection, rounds: int = 1) -> list[UUID]:
    acts.empty_queue(superuser)
    await acts.grant(db, tenant, 1000 * MC, user="ben")
    made = []
    for number in range(rounds):
        made += [
            await use(db, tenant, tokens=100 + number),
            await use(db, tenant, user="ben", charge_mc=2_500),
            await use(db, tenant, model="test/writer", provider="other", charge_mc=125, cost=None),
        ]
        await acts.work(db, (await acts.submit(db, tenant)).job_id, "failed")
    return made


async def roll_all(db: Database, tenant: Tenant, most: int = 3) -> None:
    async with db.tenant_single(tenant.org_id, "limner_worker") as tx:
        done = await roll(tx, most)
    while done:
        async with db.tenant_single(tenant.org_id, "limner_worker") as tx:
            done = await roll(tx, most)


async def asked(client: Client, query: str = "") -> list[dict[str, Any]]:
    answer = await client.call("GET", f"/api/v1/usage?{query}")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["usage"]
    return found


def truth(superuser: psycopg.Connection, tenant: Tenant, app_id: UUID | None = None) -> list[dict[str, Any]]:
    cursor = superuser.cursor(row_factory=psycopg.rows.dict_row)
    return cursor.execute(TRUTH, [tenant.org_id, app_id, app_id]).fetchall()


def grouped(rows: list[dict[str, Any]], names: list[str]) -> dict[tuple[Any, ...], tuple[int, Decimal, int]]:
    """(jobs, credits, quantity) by these names, from the records themselves."""
    sums: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0, Decimal(0), 0])
    for row in rows:
        found = sums[tuple(row[name] for name in names)]
        found[0] += row["seq"] == 1
        found[1] += Decimal(row["price_mc"]) / MC
        found[2] += row["quantity"]
    return {key: (value[0], value[1], value[2]) for key, value in sums.items()}


NAMES = {
    "day": ["day"],
    "app": ["app"],
    "user": ["user_id"],
    "model": ["model"],
    "provider": ["provider"],
    "kind": ["kind", "unit"],
}
GROUPINGS = [list(some) for size in (1, 2, 6) for some in itertools.combinations(NAMES, size)]


async def test_every_grouping_equals_the_records_before_while_and_after_they_are_in_the_sums(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    client.user = None
    for stage in (None, acts.relay, lambda db: roll_all(db, tenant), None):
        await lived(db, tenant, superuser)
        if stage is not None:
            await stage(db)
        rows = truth(superuser, tenant)
        for grouping in GROUPINGS if stage is None else GROUPINGS[::4]:
            names = [name for group in grouping for name in NAMES[group]]
            told = await asked(client, f"group_by={','.join(grouping)}")
            assert {tuple(line[name] for name in names): (line["jobs"], Decimal(line["credits"])) for line in told} == {
                key: (n, amount) for key, (n, amount, _) in grouped(rows, names).items()
            }, (stage, grouping)
            if "kind" in grouping:
                quantities = [line["quantity"] for line in told]
                assert sorted(quantities) == sorted(n for _, _, n in grouped(rows, names).values())
            assert not any("cost_micro_usd" in line for line in told)
    assert await acts.books(db, tenant.org_id) == {}


@pytest.mark.parametrize("jobs_each", counts(pr=12, long=200))
async def test_usage_is_exact_at_every_moment_whatever_commits_late(
    server: Server, db: Database, tenant: Tenant, superuser: psycopg.Connection, jobs_each: int
) -> None:
    """Eight writers whose settlements stay open for a while, one that is rolled back each time, two that roll up, one reader."""
    acts.empty_queue(superuser)
    await acts.grant(db, tenant, 100_000 * MC)
    submitted = [(await acts.submit(db, tenant)).job_id for _ in range(8 * jobs_each)]
    held = {lease.job_id: lease for lease in await acts.claim(db, len(submitted) + 100, lease_s=600)}
    done, rolling = asyncio.Event(), UsageRolling(db)

    async def write(writer: int) -> None:
        dice = random.Random(writer)
        for job_id in submitted[writer::8]:
            await acts.start(db, held[job_id])
            for commits in (False, True):
                async with await psycopg.AsyncConnection.connect(superuser_conninfo(server)) as conn:
                    await conn.execute(CLOSE, [tenant.org_id, job_id, ids.new(), ids.new()])
                    await asyncio.sleep(dice.random() * 0.02)
                    await (conn.commit() if commits else conn.rollback())

    async def until_done(work: Any) -> int:
        rounds = 0
        while not done.is_set():
            await work()
            rounds += 1
            await asyncio.sleep(0.003)
        return rounds

    async def look() -> None:
        async with await psycopg.AsyncConnection.connect(superuser_conninfo(server)) as conn:
            row = await (await conn.execute(BOTH, {"org": tenant.org_id})).fetchone()
        assert row == (0,)

    others = [asyncio.create_task(until_done(work)) for work in (
        look, lambda: acts.relay(db), lambda: rolling.roll(EPOCH), lambda: rolling.roll(EPOCH))]  # fmt: skip
    await asyncio.gather(*(write(writer) for writer in range(8)))
    done.set()
    rounds = await asyncio.gather(*others)
    await acts.relay(db)
    await roll_all(db, tenant)

    assert min(rounds) > 5
    sums = "SELECT sum(jobs), sum(price_mc), sum(quantity) FROM limner.usage_day WHERE org_id = %s"
    assert superuser.execute(sums, [tenant.org_id]).fetchone() == (len(submitted), 700 * len(submitted), len(submitted))
    assert acts.count(superuser, "SELECT count(*) FROM limner.usage_tail(%s)", tenant.org_id) == 0
    assert await acts.books(db, tenant.org_id) == {}


async def test_a_csv_says_what_the_json_says_and_both_what_the_records_say(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lived(db, tenant, superuser, 2)
    plain = Client(client.http, client.url, client.api_key, user=None)
    client.user = None

    got = await plain.call("GET", "/api/v1/usage?group_by=day,user,model,kind&format=csv")

    assert got.headers["content-type"] == "text/csv; charset=utf-8"
    assert got.headers["content-disposition"].startswith('attachment; filename="usage-')
    lines = list(csv.DictReader(io.StringIO(got.body.decode(), newline="")))
    told = await asked(client, "group_by=day,user,model,kind")
    assert lines == [{name: str(value) for name, value in line.items()} for line in told]
    assert (
        sum(Decimal(line["credits"]) for line in lines)
        == sum(Decimal(r["price_mc"]) for r in truth(superuser, tenant)) / MC
    )
    for refused in ("limit=5", "cursor=x"):
        assert (await client.call("GET", f"/api/v1/usage?format=csv&{refused}")).status == 400


async def test_a_long_csv_is_read_piece_by_piece(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lived(db, tenant, superuser)
    monkeypatch.setattr(usage, "AT_ONCE", 2)
    query = usage.Query(EPOCH.date(), date(2100, 1, 1), ("user", "model", "kind"), costs=True)
    asked_for: list[Any] = []

    async def read(query: usage.Query, after: Any) -> list[usage.Line]:
        asked_for.append(after)
        async with db.tenant_tx(tenant.org_id) as tx:
            return await usage.list_lines(tx, query, 2, after)

    lines = [line async for line in usage.every_line(query, read)]

    assert len(lines) == len({line.keys for line in lines}) == 4
    assert len(asked_for) == 3


async def test_a_refund_stands_on_its_own_day_where_its_job_stands(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    client.user = None
    job_id, _, _ = await lived(db, tenant, superuser)
    await acts.relay(db)
    await roll_all(db, tenant)
    await acts.refund(db, tenant, job_id, 200, "a")
    await acts.refund(db, tenant, job_id, 300, "b")
    superuser.execute("SET session_replication_role = replica")
    superuser.execute(
        "UPDATE limner.transfer SET created_at = created_at + interval '1 day' WHERE org_id = %s AND ref = 'b'",
        [tenant.org_id],
    )
    superuser.execute("SET session_replication_role = DEFAULT")
    today = datetime.now(UTC).date()

    told = await asked(client, f"group_by=day,model,user,kind&to={today + timedelta(days=1)}")

    assert {(line["day"], line["model"], line["user_id"], line["kind"]): line["refunded"] for line in told if line["refunded"] != "0"} == {
        (str(today), "test/painter", "ann", "image"): "0.2",
        (str(today + timedelta(days=1)), "test/painter", "ann", "image"): "0.3",
    }  # fmt: skip
    assert sum(line["jobs"] for line in told) == 3


async def test_pages_hold_every_line_once(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    client.user = None
    await lived(db, tenant, superuser, 2)
    whole = await asked(client, "group_by=user,model,kind")
    pages, cursor = [], ""
    while True:
        page = (await client.call("GET", f"/api/v1/usage?group_by=user,model,kind&limit=2&cursor={cursor}")).json
        pages += page["usage"]
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]

    assert pages == whole
    assert len(whole) == 4


@pytest.mark.parametrize("cursor", ["x", "WyJ4Il0", "W10", "bnVsbA", "WzFd", "%00", "é", "W" * 5000])
async def test_a_cursor_of_another_list_is_refused(client: Client, cursor: str) -> None:
    answer = await client.call("GET", f"/api/v1/usage?group_by=day&cursor={cursor}")

    assert (answer.status, list(answer.json["details"])) == (400, ["/cursor"])


@pytest.mark.parametrize(
    ("query", "field"),
    [("from=yesterday", "from"), ("to=2026-13-01", "to"), ("to=20261231", "to"), ("from=1969-12-31", "from"), ("from=", "from"),
     ("from=2026-02-01&to=2026-01-31", "from"), ("from=2020-01-01&to=2026-01-01", "from"), ("from=2025-01-01&to=2026-01-02", "from"),
     ("group_by=", "group_by"), ("group_by=hour", "group_by"), ("group_by=day,day", "group_by"), ("group_by=day,", "group_by"),
     ("format=xml", "format"), ("limit=0", "limit"), ("limit=1001", "limit")],
)  # fmt: skip
async def test_what_cannot_be_answered_is_refused_with_its_place(client: Client, query: str, field: str) -> None:
    answer = await client.call("GET", f"/api/v1/usage?{query}")

    assert (answer.status, list(answer.json["details"])) == (400, [f"/{field}"])


async def test_a_year_may_be_asked_for_and_more_says_how_much_may(client: Client) -> None:
    whole_year = await client.call("GET", "/api/v1/usage?from=2025-01-01&to=2026-01-01")
    a_day_more = await client.call("GET", "/api/v1/usage?from=2024-12-31&to=2026-01-01")

    assert (whole_year.status, whole_year.json["usage"]) == (200, [])
    assert "at most 366 days" in a_day_more.json["details"]["/from"][0]


async def test_nothing_used_is_an_empty_list_and_a_csv_with_names_alone(client: Client, tenant: Tenant) -> None:
    assert await asked(client, "group_by=model,kind") == []
    client.user = "nobody-yet"
    assert await asked(client) == []

    got = await Client(client.http, client.url, client.api_key).call("GET", "/api/v1/usage?format=csv&group_by=app")
    assert got.body == b"app,jobs,credits,refunded\r\n"


async def test_a_user_sees_its_own_an_app_its_own_an_organization_its_own(
    client: Client, db: Database, tenant: Tenant, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    other = await make_tenant()
    sibling, sibling_key = await second_app(db, tenant)
    await lived(db, tenant, superuser)
    await acts.grant(db, tenant, 100 * MC, app_id=sibling.id)
    await use(db, tenant, app_id=sibling.id, model="test/secret")
    await lived(db, other, superuser)
    await acts.relay(db)
    await roll_all(db, other)

    for _ in range(2):
        client.api_key, client.user = tenant.api_key, "ben"
        assert [(line["model"], line["credits"]) for line in await asked(client, "group_by=model")] == [
            ("test/painter", "2.5")
        ]
        client.user = None
        assert {line["app"] for line in await asked(client, "group_by=app,user,model")} == {"main"}
        client.api_key = sibling_key
        assert [line["model"] for line in await asked(client, "group_by=app,user,model")] == ["test/secret"]
        await roll_all(db, tenant)

    async with db.tenant_tx(other.org_id) as tx:
        for table in ("usage_day", "usage_user_day", "usage_rolled"):
            row = await tx.get(
                f"SELECT count(*) AS n, count(*) FILTER (WHERE org_id <> %s) AS foreign FROM limner.{table}",
                [tx.org_id],
            )
            assert row["n"] > 0
            assert row["foreign"] == 0
        assert await tx.all("SELECT * FROM limner.usage_tail(%s)", [tenant.org_id]) == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await tx.execute("UPDATE limner.usage_day SET jobs = 0")


async def test_users_are_told_to_keys_that_may_read_users(client: Client, db: Database, tenant: Tenant) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        _, client.api_key = await api_keys.create(tx, tenant.app, actor="test", scopes=("jobs:read",))
    assert (await client.call("GET", "/api/v1/usage?group_by=model")).status == 200
    assert (await client.call("GET", "/api/v1/usage?group_by=user")).json["code"] == "missing_scope"


async def test_what_providers_cost_is_told_where_the_operator_says_so(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    client.user = None
    await lived(db, tenant, superuser)
    assert all("cost_micro_usd" not in line for line in await asked(client, "group_by=provider,kind"))

    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await organizations.change(tx, actor="test", show_costs=True)

    told = await asked(client, "group_by=provider")
    assert {line["provider"]: line["cost_micro_usd"] for line in told} == {"local": 20, "other": 0}
    got = await Client(client.http, client.url, client.api_key, user=None).call(
        "GET", "/api/v1/usage?format=csv&group_by=provider"
    )
    assert got.body.decode().splitlines()[0] == "provider,jobs,credits,refunded,cost_micro_usd"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum", " =1", "＝1", "=cmd|' /C calc'!A0"])
async def test_no_cell_of_a_csv_begins_a_formula(
    client: Client, db: Database, tenant: Tenant, superuser: psycopg.Connection, name: str
) -> None:
    user = name.strip()
    acts.empty_queue(superuser)
    await acts.grant(db, tenant, 10 * MC, user=user)
    await use(db, tenant, user=user)

    got = await Client(client.http, client.url, client.api_key, user=None).call(
        "GET", "/api/v1/usage?format=csv&group_by=user"
    )

    [line] = list(csv.DictReader(io.StringIO(got.body.decode())))
    assert line["user_id"] == f"'{user}"
    assert usage_csv.harmless(name) == f"'{name}"


@pytest.mark.parametrize("text", ["ann", "a=1", "user-1", "", "1-2", "'quoted"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert usage_csv.harmless(text) == text


@pytest.mark.parametrize(
    "bent",
    [
        "UPDATE limner.usage_day SET price_mc = price_mc + 1 WHERE org_id = %s",
        "UPDATE limner.usage_user_day SET jobs = jobs + 1 WHERE org_id = %s",
        "DELETE FROM limner.usage_day WHERE org_id = %s",
        "UPDATE limner.usage_rolled SET seq = 0 WHERE org_id = %s",
        "UPDATE limner.usage_day SET cost_micro_usd = cost_micro_usd - 1 WHERE org_id = %s",
    ],
)
async def test_a_sum_that_is_not_the_records_sum_breaks_the_invariant(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, bent: str
) -> None:
    await lived(db, tenant, superuser)
    await acts.relay(db)
    await roll_all(db, tenant)
    assert await acts.books(db, tenant.org_id) == {}

    superuser.execute(bent, [tenant.org_id])

    assert [name.split()[0] for name in await acts.books(db, tenant.org_id)] == ["I15"]


async def test_what_is_read_beside_the_sums_does_not_grow_with_the_log(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    """Under the policies of who asks, and although the planner last looked at a log that was next to empty."""
    read = (
        "SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes"
        " WHERE schemaname = 'limner' AND relname IN ('event', 'event_order', 'usage_record')"
    )
    await lived(db, tenant, superuser)
    await acts.relay(db)
    superuser.execute("ANALYZE limner.event, limner.event_order, limner.usage_record")
    row = superuser.execute("SELECT max(seq) FROM limner.event_order WHERE org_id = %s", [tenant.org_id]).fetchone()
    assert row is not None
    superuser.execute(
        "WITH made AS (INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)"
        " SELECT %(org)s, gen_random_uuid(), %(app)s, 'job.started', gen_random_uuid(), '{}' FROM generate_series(1, 4000) RETURNING *)"
        " INSERT INTO limner.event_order (org_id, seq, event_id, app_id, subject_id)"
        " SELECT org_id, %(top)s + row_number() OVER (), id, app_id, subject_id FROM made",
        {"org": tenant.org_id, "app": tenant.app.id, "top": row[0]},
    )
    superuser.execute(
        "UPDATE limner.event_relay SET xid = pg_current_xact_id(), id = 'ffffffff-ffff-ffff-ffff-ffffffffffff'"
    )
    await roll_all(db, tenant, 5000)
    await use(db, tenant)
    acts.end_sessions(superuser)
    before = acts.count(superuser, read)

    async with db.tenant_tx(tenant.org_id) as tx:
        [line] = await tx.all("SELECT * FROM limner.usage_tail(%s)", [tenant.org_id])

    acts.end_sessions(superuser)
    assert (line["jobs"], line["price_mc"]) == (1, MC)
    assert acts.count(superuser, read) - before < 200
