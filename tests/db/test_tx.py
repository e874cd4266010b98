"""The two doors to data: what is committed, what is rolled back, and what never stays on a pooled connection (TA3, TA5)."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Address, Database, DatabaseUnavailable, runtime_conninfo
from limner.db.tx import NotData, Tx
from limner.kit import ids
from limner.tenancy import apps
from tests.conftest import MakeTenant, Server, Tenant


@pytest_asyncio.fixture
async def one(server: Server, db: Database) -> AsyncIterator[Database]:
    """Pools of a single connection: whoever comes next gets the connection of whoever was there before."""
    database = Database(Address(server.url), server.root, ("limner_api", "limner_operator"), size=1)
    await database.open()
    yield database
    await database.close()


async def _apps(tx: Tx) -> list[Any]:
    return [row["id"] for row in await tx.all("SELECT id FROM limner.app")]


async def test_a_transaction_commits_at_its_end_and_not_before(db: Database, tenant: Tenant) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await apps.change(tx, tenant.app, actor="test", name="renamed")
        async with db.tenant_tx(tenant.org_id) as other:
            assert (await apps.get(other, "main")).name == "Main"
    async with db.tenant_tx(tenant.org_id) as tx:
        assert (await apps.get(tx, "main")).name == "renamed"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, asyncio.CancelledError])
async def test_an_error_rolls_everything_back(db: Database, tenant: Tenant, error: type[BaseException]) -> None:
    async def interrupted() -> None:
        async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            await apps.change(tx, tenant.app, actor="test", name="renamed")
            raise error

    with pytest.raises(error):
        await interrupted()

    async with db.tenant_tx(tenant.org_id) as tx:
        assert (await apps.get(tx, "main")).name == "Main"


@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.long)])
async def test_ta3_interleaved_tenants_on_one_connection_never_see_each_other(
    one: Database, make_tenant: MakeTenant, count: int
) -> None:
    """Every tenth is cancelled, raises, or breaks its statement; the next one on the connection is another tenant."""
    tenants = [await make_tenant(credits=0) for _ in range(3)]
    wrong: list[Any] = []
    broken = 0

    async def visit(tenant: Tenant, trouble: str | None) -> None:
        async with one.tenant_tx(tenant.org_id) as tx:
            seen = await _apps(tx)
            if seen != [tenant.app.id]:
                wrong.append((tenant.org_id, seen))
            if trouble == "raises":
                raise RuntimeError
            if trouble == "breaks":
                await tx.all("SELECT 1 / 0")
            if trouble == "cancelled":
                await tx.all("SELECT pg_sleep(0.5)")

    for number in range(0, count, 4):
        tasks = []
        for n in range(number, number + 4):
            trouble = random.choice(("raises", "breaks", "cancelled")) if n % 10 == 0 else None
            tasks.append((asyncio.create_task(visit(tenants[n % 3], trouble)), trouble))
        for task, trouble in tasks:
            if trouble == "cancelled":
                await asyncio.sleep(0.005)
                task.cancel()
        results = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        broken += sum(isinstance(r, BaseException) for r in results)
        unasked = [r for r, (_, t) in zip(results, tasks, strict=True) if isinstance(r, BaseException) and t is None]
        assert unasked == []

    assert wrong == []
    assert broken >= count // 11, "the troubles did not happen"  # on a busy machine a cancel may come after the end


async def test_ta3_a_context_ends_with_its_transaction(one: Database, tenant: Tenant) -> None:
    async with one.tenant_tx(tenant.org_id) as tx:
        assert await _apps(tx) == [tenant.app.id]

    with pytest.raises(psycopg.Error) as caught:
        async with one.system_tx("limner_api", "a test looks without a tenant") as tx:
            await _apps(tx)
    assert caught.value.sqlstate == "LM001"


async def test_ta3_a_single_statements_context_ends_with_it(one: Database, tenant: Tenant) -> None:
    async with one.tenant_single(tenant.org_id, "limner_operator") as tx:
        await tx.get("SELECT * FROM limner.top_up(%s, %s, 'grant', 1000, NULL, 'x', 'x')", [tx.ctx, ids.new()])

    with pytest.raises(psycopg.Error) as caught:
        async with one.system_tx("limner_operator", "a test looks without a tenant") as tx:
            await tx.all("SELECT * FROM limner.transfer")
    assert caught.value.sqlstate == "LM001"


async def test_a_single_statement_transaction_is_used_once(db: Database, tenant: Tenant) -> None:
    async with db.tenant_single(tenant.org_id) as tx:
        await tx.all("SELECT 1 AS one")
        for again in (tx.all, tx.find, tx.execute):
            with pytest.raises(RuntimeError, match="twice"):
                await again("SELECT 1 AS one")


async def test_a_system_transaction_has_no_organization(db: Database) -> None:
    async with db.system_tx("limner_audit", "a test looks") as tx:
        with pytest.raises(RuntimeError, match="no organization"):
            _ = tx.org_id
    with pytest.raises(AssertionError):
        async with db.system_tx("limner_audit", ""):
            pass


@pytest.mark.parametrize(
    "statement",
    ["PREPARE p AS SELECT 1", "DEALLOCATE ALL", "SET search_path = x", "SET ROLE limner_owner", "RESET ALL", "DISCARD ALL", "COMMIT",
     "ROLLBACK", "BEGIN", "SAVEPOINT x", "DO $$ BEGIN END $$", "LISTEN x", "NOTIFY x", "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
     "CREATE TEMP TABLE x (n int)", "COPY limner.job TO STDOUT", "TRUNCATE limner.job", "LOCK TABLE limner.job", "VALUES (1)",
     "TABLE limner.job", "EXPLAIN SELECT 1", "CALL x()", "MERGE INTO x", "", " ; SELECT 1", "/* */ SET x = 1", "-- x\nSET x = 1",
     "SELECTED", "WITHOUT"],
)  # fmt: skip
async def test_ta5_a_verb_runs_nothing_but_data_statements(db: Database, tenant: Tenant, statement: str) -> None:
    async with db.tenant_tx(tenant.org_id) as tx:
        for run in (tx.execute, tx.find, tx.all, tx.get):
            with pytest.raises(NotData):
                await run(statement)


@pytest.mark.parametrize("params", [None, []])
async def test_ta5_a_second_statement_cannot_ride_along(db: Database, tenant: Tenant, params: list[Any] | None) -> None:
    """What an injection would need to leave something behind: the extended protocol takes one statement."""
    riders = ("SELECT 1; PREPARE p AS SELECT 2", "SELECT 1; COMMIT; SET search_path = x", "SELECT 1;SELECT 2")
    for rider in riders:
        for verb in ("execute", "find", "all"):
            with pytest.raises(psycopg.errors.SyntaxError):
                async with db.tenant_tx(tenant.org_id) as tx:
                    await getattr(tx, verb)(rider, params)


async def test_ta5_what_prepare_could_do_to_the_next_tenant(
    one: Database, server: Server, make_tenant: MakeTenant
) -> None:
    """Why the two tests above matter. Past the doors of Tx, on the raw connection, an attacker replaces a prepared statement
    by one of the same name; the next tenant's question then runs the attacker's text under the next tenant's context.
    """
    attacker, victim = await make_tenant(credits=0), await make_tenant(credits=0)

    async def used_by_the_victim() -> None:
        for _ in range(4):  # often enough to be prepared
            async with one.tenant_tx(victim.org_id) as tx:
                await apps.list_all(tx)

    async def poison(run: Callable[[str], Awaitable[Any]], tx: Tx) -> None:
        rows = await tx.all("SELECT name FROM pg_prepared_statements WHERE statement LIKE '%ORDER BY slug%'")
        name = rows[0]["name"]
        await run(f"DEALLOCATE {name}")
        await run(
            f"PREPARE {name}(uuid, smallint) AS SELECT id, slug, name, set_config('x.loot', name, false) AS description, is_enabled,"
            " welcome_mc, monthly_mc, jobs_per_min, user_jobs_per_min, keep_days, keep_jobs, body_users, created_at"
            " FROM limner.app WHERE $1 IS NOT NULL AND $2 IS NOT NULL"
        )

    await used_by_the_victim()
    with pytest.raises(NotData):
        async with one.tenant_tx(attacker.org_id) as tx:
            await poison(tx.execute, tx)
    async with one.tenant_tx(victim.org_id) as tx:
        assert [app.description for app in await apps.list_all(tx)] == [""]

    await used_by_the_victim()
    async with one.tenant_tx(attacker.org_id) as tx:
        await poison(tx._conn.execute, tx)
    async with one.tenant_tx(victim.org_id) as tx:
        stolen = [app.description for app in await apps.list_all(tx)]
    assert stolen == ["Main"], "the control: without the doors it works, so the doors are what keeps it out"


async def test_a_pool_without_a_free_connection_says_so(
    one: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    one._pools["limner_api"].timeout = 0.05
    async with one.tenant_tx(tenant.org_id):
        with pytest.raises(DatabaseUnavailable):
            async with one.tenant_tx(tenant.org_id):
                pass
        with pytest.raises(DatabaseUnavailable):
            async with one.tenant_single(tenant.org_id):
                pass


def test_a_runtime_address_keeps_the_host_and_changes_the_user(server: Server) -> None:
    facts = psycopg.conninfo.conninfo_to_dict(runtime_conninfo(server.url, "limner_api", server.root))

    assert facts["user"] == facts["application_name"] == "limner_api"
    assert facts["password"] == server.root.password("limner_api")
    assert facts["dbname"] == psycopg.conninfo.conninfo_to_dict(server.url)["dbname"]


async def test_a_role_without_a_pool_is_a_mistake_of_the_code(one: Database) -> None:
    with pytest.raises(KeyError):
        async with one.system_tx("limner_worker", "a test asks for what is not there"):
            pass
