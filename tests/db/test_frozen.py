"""MJ1, MJ3: history cannot be rewritten, by nobody who can log in and not by the tables' owner either."""

from collections.abc import Iterator
from itertools import product
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from limner.db import roles
from limner.db.pools import Database
from tests import acts
from tests.conftest import Tenant
from tests.db.planted import tenant_tables

MONEY_AND_JOBS = ("wallet", "transfer", "job", "job_input", "job_queue", "provider_call", "usage_record", "event")
LEASES = {"phase", "claimable_at", "runs", "fence", "lease_owner", "percent", "stage", "model_id", "provider_id"}
STATES = ("queued", "running", "succeeded", "failed", "cancelled")
ALLOWED = {
    ("queued", "running"), ("running", "queued"), ("queued", "failed"), ("queued", "cancelled"), ("running", "succeeded"),
    ("running", "failed"), ("running", "cancelled"), ("queued", "queued"), ("running", "running"),
}  # fmt: skip


@pytest_asyncio.fixture
async def closed(db: Database, tenant: Tenant) -> UUID:
    job_id = (await acts.submit(db, tenant, key="k")).job_id
    await acts.work(db, job_id)
    await acts.refund(db, tenant, job_id, 400, "r")
    return job_id


@pytest.fixture
def owner(superuser: psycopg.Connection, db: Database, tenant: Tenant) -> Iterator[psycopg.Connection]:
    """The owner of everything, as its functions run: inside the organization they entered. Nothing is committed."""
    superuser.execute("BEGIN; SET LOCAL ROLE limner_owner")
    superuser.execute("SELECT set_config('limner.entered', %s, true)", [str(tenant.org_id)])
    yield superuser
    superuser.execute("ROLLBACK")


@pytest.mark.parametrize("role", roles.RUNTIME)
def test_mj1_no_runtime_role_may_write_money_or_job_state(
    db: Database, superuser: psycopg.Connection, role: str
) -> None:
    granted = superuser.execute(
        "SELECT c.relname, p.privilege, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0,"
        " unnest(ARRAY['INSERT', 'UPDATE']) p (privilege) WHERE c.relnamespace = 'limner'::regnamespace AND c.relname = ANY(%s)"
        " AND has_column_privilege(%s, c.oid, a.attnum, p.privilege)",
        [list(MONEY_AND_JOBS), role],
    ).fetchall()
    deletable = superuser.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'limner'::regnamespace AND c.relname = ANY(%s)"
        " AND (has_table_privilege(%s, c.oid, 'DELETE') OR has_table_privilege(%s, c.oid, 'TRUNCATE'))",
        [list(MONEY_AND_JOBS), role, role],
    ).fetchall()

    expected = {("job_queue", "UPDATE", column) for column in LEASES} if role == "limner_dispatch" else set()
    assert set(granted) == expected
    assert deletable == []


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ("state = 'queued', finished_at = NULL, price_final_mc = NULL", False),
        ("state = 'failed', price_final_mc = 0, refunded_mc = 0", False),
        ("price_final_mc = price_hold_mc - 1", False),
        ("price_hold_mc = price_hold_mc + 1", False),
        ("wallet_id = org_id, end_user_id = NULL", False),
        ("finished_fence = 99", False),
        ("finished_at = clock_timestamp()", False),
        ("created_at = clock_timestamp()", False),
        ("request_hash = decode(repeat('00', 32), 'hex')", False),
        ("refunded_mc = refunded_mc - 1", False),
        ('input = \'{"prompt": "another"}\'', False),
        ('outputs = \'[{"key": "another"}]\'', False),
        ("idem_key = 'another'", False),
        ("error_message = 'rewritten'", False),
        ("refunded_mc = refunded_mc + 1", True),
        ("input = '{}'", True),
        ("outputs = NULL", True),
        ("idem_key = NULL", True),
    ],
)
def test_mj3_a_closed_job_is_frozen_for_its_owner_too(
    closed: UUID, owner: psycopg.Connection, change: str, allowed: bool
) -> None:
    statement = f"UPDATE limner.job SET {change} WHERE id = %s"
    if allowed:
        assert owner.execute(statement, [closed]).rowcount == 1
    else:
        with pytest.raises(psycopg.Error) as caught:
            owner.execute(statement, [closed])
        assert caught.value.sqlstate == "LM409"


@pytest.mark.parametrize(("old", "new"), list(product(STATES, STATES)))
async def test_mj3_jobs_move_only_along_the_drawn_lines(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, old: str, new: str
) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    over = {"succeeded", "failed", "cancelled"}
    superuser.execute("BEGIN; SET LOCAL session_replication_role = replica")
    change = "UPDATE limner.job SET state = %s, finished_at = %s, price_final_mc = %s WHERE id = %s"
    superuser.execute(change, [old, "now" if old in over else None, 0 if old in over else None, job_id])
    superuser.execute("SET LOCAL session_replication_role = origin")

    try:
        superuser.execute(change, [new, "now" if new in over else None, 0 if new in over else None, job_id])
        moved = True
    except psycopg.Error as error:
        assert error.sqlstate == "LM409"  # noqa: PT017
        moved = False
    finally:
        superuser.execute("ROLLBACK")

    assert moved == ((old, new) in ALLOWED or (old == new and old in over)), (
        "a closed job may only be written as it was"
    )


@pytest.mark.parametrize("table", ["transfer", "usage_record", "audit_log"])
@pytest.mark.parametrize("statement", ["UPDATE limner.{} SET created_at = now()", "DELETE FROM limner.{}"])
def test_mj1_history_is_append_only_for_its_owner_too(
    closed: UUID, owner: psycopg.Connection, table: str, statement: str
) -> None:
    with pytest.raises(psycopg.Error, match="append-only") as caught:
        owner.execute(statement.format(table))
    assert caught.value.sqlstate == "LM403"


@pytest.mark.parametrize("table", ["transfer", "usage_record", "audit_log", "job", "event"])
def test_mj1_history_is_not_truncated_even_by_its_owner(closed: UUID, owner: psycopg.Connection, table: str) -> None:
    with pytest.raises(psycopg.Error, match="append-only"):
        owner.execute(f"TRUNCATE limner.{table} CASCADE")


def test_mj1_a_job_is_never_deleted(closed: UUID, owner: psycopg.Connection) -> None:
    with pytest.raises(psycopg.Error, match="append-only"):
        owner.execute("DELETE FROM limner.job")


async def test_mj1_the_owner_is_bound_by_the_tenant_too(
    db: Database, closed: UUID, owner: psycopg.Connection, superuser: psycopg.Connection, tenant: Tenant
) -> None:
    """FORCE ROW LEVEL SECURITY: the functions run as the owner, and see one organization."""
    for table in tenant_tables(superuser):
        seen = {row[0] for row in owner.execute(f"SELECT DISTINCT org_id FROM limner.{table}")}
        assert seen <= {tenant.org_id}, table


@pytest.mark.parametrize(
    "values",
    [
        "'grant', NULL, NULL, NULL, %(w)s, NULL, 99, 5, NULL, NULL",  # no debit side
        "'grant', %(w)s, NULL, 99, %(w)s, NULL, 99, 5, NULL, NULL",  # to itself
        "'grant', NULL, 'issuance', NULL, %(w)s, NULL, 99, -5, NULL, NULL",  # backwards
        "'grant', NULL, 'pocket', NULL, %(w)s, NULL, 99, 5, NULL, NULL",  # a book that is none
        "'magic', NULL, 'issuance', NULL, %(w)s, NULL, 99, 5, NULL, NULL",  # a kind that is none
        "'post', %(w)s, NULL, 99, NULL, 'revenue', NULL, 5, NULL, NULL",  # without its hold
        "'void', %(w)s, NULL, 99, NULL, 'revenue', NULL, 5, %(j)s, NULL",  # that takes credits
        "'grant', NULL, 'issuance', NULL, %(w)s, NULL, NULL, 5, NULL, NULL",  # without its version
        "'hold', %(w)s, NULL, 99, NULL, 'revenue', NULL, 5, NULL, %(j)s",  # under another id than its job's
    ],
)
def test_mj1_a_transfer_that_is_no_double_entry_is_refused_by_the_table(
    closed: UUID, superuser: psycopg.Connection, tenant: Tenant, values: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        superuser.execute(
            "INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_book, debit_version, credit_wallet, credit_book,"
            f" credit_version, amount_mc, hold_id, job_id) SELECT %(o)s, gen_random_uuid(), {values}",
            {"o": tenant.org_id, "w": tenant.org_id, "j": closed},
        )


@pytest.mark.parametrize("change", ["available_mc = -1", "held_mc = -1"])
async def test_mj2_a_wallet_cannot_be_negative_whoever_writes_it(
    db: Database, tenant: Tenant, superuser: psycopg.Connection, change: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        superuser.execute(f"UPDATE limner.wallet SET {change} WHERE org_id = %s", [tenant.org_id])
