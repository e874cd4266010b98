"""Two organizations with a row in every tenant table, one of them marked so that a leak of any of its rows is seen."""

from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import runs
from limner.kit import ids
from limner.tenancy import audit, organizations
from tests import acts
from tests.conftest import MakeTenant, Tenant

CANARY = "canary7c1fd0e2"
CANARY_AMOUNT = 7_351_904_268  # milli-credits: what the marked wallet holds; found in numbers as the word is in text


@dataclass(frozen=True)
class Planted:
    """`mine` attacks, `theirs` is marked; `their_*` are ids an attacker may have learnt."""

    mine: Tenant
    theirs: Tenant
    their_queued: UUID
    their_done: UUID
    their_user: UUID
    my_job: UUID


A_BATCH = (
    "INSERT INTO limner.batch (org_id, id, app_id, principal_id, idem_key, request_hash, items, hold_mc, available_mc, open_at)"
    " VALUES (%s, %s, %s, %s, %s, sha256(''), 1, %s, 0, 0)"
)


def marked(text: str) -> bool:
    return CANARY in text or str(CANARY_AMOUNT) in text


async def plant(db: Database, superuser: psycopg.Connection, make_tenant: MakeTenant) -> Planted:
    mine, theirs = await make_tenant(wallet_credits=10), await make_tenant(wallet_credits=10)
    for tenant, mark in ((mine, "plain"), (theirs, CANARY)):
        done = (await acts.submit(db, tenant, body=f"{mark} done")).job_id
        queued = (await acts.submit(db, tenant, body=f"{mark} queued", key=mark)).job_id
        held = await acts.lease(db, done, lease_s=60)
        await acts.start(db, held)
        async with db.tenant_tx(tenant.org_id, "limner_worker") as tx:
            await runs.intend(tx, held, "main", "local", mark, "priority")
            await runs.record_error(tx, held, "main", "local", 1, code=mark, message=mark, latency_ms=1)
            usage = [{"kind": mark, "quantity": 1, "unit": mark}]
            closing = runs.Closing("succeeded", charge_mc=500, outputs=[{"key": mark}], provider=mark, usage=usage)
            await runs.finish(tx, held, closing)
        await acts.refund(db, tenant, done, 1, mark)
        await _catalog(db, tenant.org_id, mark)
        async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            await audit.record(tx, mark, mark, mark, mark, note=mark)
            await organizations.change(tx, actor=mark, name=f"{mark} Ltd")
        _mark_the_rest(superuser, tenant, queued, mark)
        _mark_numbers(superuser, tenant, done, CANARY_AMOUNT if mark == CANARY else 7)
    async with db.tenant_tx(theirs.org_id) as tx:
        user = await tx.get("SELECT id FROM limner.end_user")
    superuser.execute(
        "UPDATE limner.wallet SET available_mc = %s WHERE org_id = %s AND id <> org_id", [CANARY_AMOUNT, theirs.org_id]
    )
    my_job = acts_job(superuser, mine)
    return Planted(mine, theirs, acts_job(superuser, theirs), _done(superuser, theirs), user["id"], my_job)


def acts_job(superuser: psycopg.Connection, tenant: Tenant) -> UUID:
    """The tenant's queued job."""
    return _one(superuser, "SELECT job_id FROM limner.job_queue WHERE org_id = %s", tenant)


def _done(superuser: psycopg.Connection, tenant: Tenant) -> UUID:
    return _one(superuser, "SELECT id FROM limner.job WHERE org_id = %s AND finished_at IS NOT NULL", tenant)


def _one(superuser: psycopg.Connection, query: str, tenant: Tenant) -> UUID:
    row = superuser.execute(query, [tenant.org_id]).fetchone()
    assert row is not None
    return UUID(str(row[0]))


async def _catalog(db: Database, org_id: UUID, mark: str) -> None:
    model_id, provider_id = ids.new(), ids.new()
    async with db.tenant_tx(org_id, "limner_operator") as tx:
        await tx.execute(
            "INSERT INTO limner.model (org_id, id, name, display_name, kind, input_schema, price_mc)"
            " VALUES (%s, %s, %s, %s, 'image', %s, 1000)",
            [org_id, model_id, f"{mark}/painter", mark, Jsonb({"title": mark})],
        )
        await tx.execute(
            "INSERT INTO limner.provider (org_id, id, name, display_name, adapter, config) VALUES (%s, %s, %s, %s, 'local', %s)",
            [org_id, provider_id, mark, mark, Jsonb({"note": mark})],
        )
        await tx.execute(
            "INSERT INTO limner.route (org_id, id, model_id, provider_org, provider_id, provider_model)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [org_id, ids.new(), model_id, org_id, provider_id, mark],
        )


async def plant_platform(db: Database) -> None:
    """One installation-wide catalog row of each kind, which everybody may read."""
    await _catalog(db, PLATFORM, "platform")


def _mark_the_rest(superuser: psycopg.Connection, tenant: Tenant, queued: UUID, mark: str) -> None:
    """What no verb writes as text: names, progress, image bytes."""
    superuser.execute(
        "INSERT INTO limner.job_input (org_id, job_id, name, media_type, width, height, data) VALUES (%s, %s, 'mask', %s, 1, 1, %s)",
        [tenant.org_id, queued, mark, mark.encode()],
    )
    superuser.execute(
        "INSERT INTO limner.upload (org_id, id, app_id, external_id, kind, name, state, size_bytes, sha256, counted_bytes, request_hash,"
        " expires_at, error_code, error_message)"
        " VALUES (%s, %s, %s, %s, 'image', %s, 'rejected', 1, sha256(''), 0, sha256(''), now(), %s, %s)",
        [tenant.org_id, ids.new(), tenant.app.id, mark, mark, mark, mark],
    )
    superuser.execute(
        "INSERT INTO limner.provider_key (org_id, id, provider_org, provider_id, origin, sealed, kid, last4, fingerprint, created_by)"
        " SELECT org_id, gen_random_uuid(), org_id, id, %s, decode(repeat('00', 60), 'hex'), 1, 'abcd', '0123456789abcdef', %s"
        " FROM limner.provider WHERE org_id = %s",
        [mark, mark, tenant.org_id],
    )
    superuser.execute("INSERT INTO limner.ai_settings (org_id, tone) VALUES (%s, %s)", [tenant.org_id, mark])
    for statement in (
        "UPDATE limner.app SET name = %s, description = %s WHERE org_id = %s",
        "UPDATE limner.api_key SET name = %s, prefix = %s WHERE org_id = %s",
        "UPDATE limner.job_queue SET stage = %s, lease_owner = CASE WHEN %s = '' THEN lease_owner END WHERE org_id = %s",
        "UPDATE limner.end_user SET external_id = %s, metadata = jsonb_build_object('note', %s::text) WHERE org_id = %s",
    ):
        superuser.execute(statement, [mark, mark, tenant.org_id])


def _mark_numbers(superuser: psycopg.Connection, tenant: Tenant, done: UUID, amount_mc: int) -> None:
    """What holds no text at all: a spent lot and its draw, a closed day, a share of the queue, a bucket (by the ids they name)."""
    lot, subject = ids.new(), UUID(f"00000000-0000-4000-8000-{amount_mc:012d}")
    planted: tuple[tuple[str, list[object]], ...] = (
        ("INSERT INTO limner.lot (org_id, id, wallet_id, transfer_id, kind, granted_mc, remaining_mc, expires_at)"
         " SELECT org_id, %s, credit_wallet, id, 'grant', %s, 0, now() FROM limner.transfer"
         " WHERE org_id = %s AND credit_wallet IS NOT NULL LIMIT 1", [lot, amount_mc, tenant.org_id]),
        ("INSERT INTO limner.lot_draw (org_id, job_id, lot_id, amount_mc) VALUES (%s, %s, %s, %s)",
         [tenant.org_id, done, lot, amount_mc]),
        ("INSERT INTO limner.book_day (org_id, day, book, kind, debit_mc, credit_mc, transfers)"
         " VALUES (%s, '2020-02-29', 'issuance', 'grant', %s, 0, 1)", [tenant.org_id, amount_mc]),
        ("INSERT INTO limner.queue_policy (org_id, app_id) VALUES (%s, %s)", [tenant.org_id, subject]),
        ("INSERT INTO limner.rate_counter (org_id, subject_id, shard, tat) VALUES (%s, %s, 0, now())", [tenant.org_id, subject]),
        ("INSERT INTO limner.event_order (org_id, seq, event_id, subject_id) VALUES (%s, %s, %s, %s)",
         [tenant.org_id, amount_mc, lot, subject]),
        ("INSERT INTO limner.upload_usage (org_id, used_bytes) VALUES (%s, %s)", [tenant.org_id, amount_mc]),
        ("INSERT INTO limner.usage_rolled (org_id, seq) VALUES (%s, %s)", [tenant.org_id, amount_mc]),
        ("INSERT INTO limner.usage_day (org_id, day, app_id, model, provider, kind, unit, jobs, quantity, price_mc, cost_micro_usd)"
         " VALUES (%s, '2020-02-29', %s, '', '', '', '', 1, 1, %s, 0)", [tenant.org_id, tenant.app.id, amount_mc]),
        ("INSERT INTO limner.usage_user_day (org_id, day, app_id, payer_id, model, provider, kind, unit, jobs, quantity, price_mc,"
         " cost_micro_usd) VALUES (%s, '2020-02-29', %s, %s, '', '', '', '', 1, 1, %s, 0)",
         [tenant.org_id, tenant.app.id, subject, amount_mc]),
        ("INSERT INTO limner.leftover (org_id, finished_at, job_id) VALUES (%s, now(), %s)", [tenant.org_id, subject]),
        ("INSERT INTO limner.provider_health (org_id, provider_id, key_id) VALUES (%s, %s, %s)", [tenant.org_id, subject, subject]),
        ("INSERT INTO limner.provider_slice (org_id, provider_id, key_id, id, granted_at, requests, tokens)"
         " VALUES (%s, %s, %s, %s, now(), 1, %s)", [tenant.org_id, subject, subject, subject, amount_mc]),
        ("INSERT INTO limner.webhook_endpoint (org_id, id, app_id, kind, url, secret) VALUES (%s, %s, %s, 'extra', %s, '\\x00')",
         [tenant.org_id, subject, tenant.app.id, f"https://hooks.example.com/{subject}"]),
        ("INSERT INTO limner.webhook_delivery (org_id, id, endpoint_id, event_id) SELECT org_id, %s, %s, id FROM limner.event"
         " WHERE org_id = %s LIMIT 1", [subject, subject, tenant.org_id]),
        ("INSERT INTO limner.webhook_attempt (org_id, delivery_id, n, outcome, latency_ms) VALUES (%s, %s, 1, 'timeout', 1)",
         [tenant.org_id, subject]),
        (A_BATCH, [tenant.org_id, subject, tenant.app.id, subject, str(subject), amount_mc]),
        (A_BATCH, [tenant.org_id, done, tenant.app.id, done, str(subject), amount_mc]),
        ("INSERT INTO limner.batch_item (org_id, batch_id, place, job_id) VALUES (%s, %s, 0, %s)", [tenant.org_id, subject, done]),
    )  # fmt: skip
    for statement, values in planted:
        superuser.execute(statement, values)


def tenant_tables(superuser: psycopg.Connection) -> list[str]:
    """Every table with an org_id, from the catalog: a table that is added later is tested without being named."""
    rows = superuser.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE n.nspname = 'limner' AND c.relkind IN ('r', 'p') AND a.attname = 'org_id' ORDER BY 1"
    )
    return [row[0] for row in rows]


def fingerprint(superuser: psycopg.Connection, org_id: UUID) -> dict[str, str]:
    """A hash of all of an organization's rows, table by table."""
    return {
        table: str(
            superuser.execute(
                f"SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM limner.{table} t WHERE org_id = %s",
                [org_id],
            ).fetchone()
        )
        for table in tenant_tables(superuser)
    }
