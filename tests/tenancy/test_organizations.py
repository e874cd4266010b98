"""Organizations, apps and end users: born whole, changed with a trace, never made by looking."""

from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.hub import jobs
from limner.kit import ids
from limner.kit.money import MC
from limner.ledger import wallets
from limner.tenancy import apps, audit, end_users, organizations
from tests import acts
from tests.conftest import MakeTenant, Tenant


async def test_an_organization_is_born_with_its_wallet_and_a_trace(db: Database) -> None:
    org_id = ids.new()
    async with db.tenant_tx(org_id, "limner_operator") as tx:
        await organizations.create(tx, f"o-{org_id.hex[:12]}", "O", actor="olga", grants="from_wallet")
        wallet = await wallets.get(tx, org_id)
        trace = await audit.list_entries(tx)

    assert (wallet.owner, wallet.available_mc, wallet.held_mc) == ("organization", 0, 0)
    assert [(e["action"], e["actor"], e["metadata"]["grants"]) for e in trace] == [
        ("organization.created", "olga", "from_wallet")
    ]


async def test_a_slug_names_one_organization_and_one_app_of_it(db: Database, make_tenant: MakeTenant) -> None:
    first, second = await make_tenant(), await make_tenant()

    with pytest.raises(organizations.SlugTaken):
        async with db.tenant_tx(ids.new(), "limner_operator") as tx:
            await organizations.create(tx, first.slug, "x", actor="test")
    with pytest.raises(organizations.SlugTaken):
        async with db.tenant_tx(first.org_id, "limner_operator") as tx:
            await apps.create(tx, "main", "x", actor="test")

    assert first.app.slug == second.app.slug == "main", "two organizations may use one app name"


async def test_an_organization_is_not_made_twice_under_one_context(db: Database, tenant: Tenant) -> None:
    with pytest.raises((psycopg.errors.UniqueViolation, organizations.SlugTaken)):
        async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
            await organizations.create(tx, f"again-{tenant.slug}", "x", actor="test")


@pytest.mark.parametrize("slug", ["", "A", "-a", "a_b", "a b", "a" * 64, "ä", "a\n"])
async def test_a_slug_is_lower_case_letters_digits_and_dashes(db: Database, slug: str) -> None:
    with pytest.raises(organizations.BadSlug):
        async with db.tenant_tx(ids.new(), "limner_operator") as tx:
            await organizations.create(tx, slug, "x", actor="test")
    with pytest.raises(psycopg.errors.CheckViolation):  # and the table says so too
        async with db.tenant_tx(ids.new(), "limner_operator") as tx:
            await tx.execute("SELECT limner.create_organization(NULL, %s, 'x', 'issue', NULL)", [slug])


async def test_reading_never_makes_a_user(db: Database, tenant: Tenant, superuser: psycopg.Connection) -> None:
    """The prototype makes a user, with welcome tokens, for any name that is asked about."""
    async with db.tenant_tx(tenant.org_id) as tx:
        with pytest.raises(end_users.UserNotFound):
            await end_users.get(tx, tenant.app.id, "ghost")
        assert await jobs.list_of_app(tx, tenant.app.id, external_id="ghost", state=None, limit=5, before=None) == []
        with pytest.raises(jobs.JobNotFound):
            await jobs.get(tx, tenant.app.id, ids.new(), "ghost")
        with pytest.raises(wallets.WalletNotFound):
            await wallets.get(tx, ids.new())
    with pytest.raises(jobs.JobNotFound):
        await acts.cancel(db, tenant, ids.new())

    assert acts.count(superuser, "SELECT count(*) FROM limner.end_user WHERE org_id = %s", tenant.org_id) == 1


async def test_a_refused_submit_makes_no_user_either(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    answers = await acts.together([lambda: acts.submit(db, tenant, user="poor")] * 5)

    assert all(isinstance(a, Exception) for a in answers)
    assert acts.count(superuser, "SELECT count(*) FROM limner.end_user WHERE org_id = %s", tenant.org_id) == 1


async def test_one_external_id_in_two_apps_is_two_people(db: Database, tenant: Tenant) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        second = await apps.create(tx, "second", "Second", actor="test")
    await acts.grant(db, tenant, 5 * MC, app_id=second.id)
    job_id = (await acts.submit(db, tenant, app_id=second.id)).job_id

    async with db.tenant_tx(tenant.org_id) as tx:
        left, right = [await end_users.get(tx, app_id, "ann") for app_id in (tenant.app.id, second.id)]
        balances = [(await wallets.get(tx, user.id)).available_mc for user in (left, right)]
        with pytest.raises(jobs.JobNotFound):
            await jobs.get(tx, tenant.app.id, job_id)
        assert await jobs.list_of_app(tx, tenant.app.id, external_id="ann", state=None, limit=5, before=None) == []

    assert left.id != right.id
    assert balances == [1000 * MC, 4 * MC]


async def test_an_apps_user_sees_its_own_jobs_only(db: Database, tenant: Tenant) -> None:
    await acts.grant(db, tenant, MC, user="bob")
    anns, bobs = [(await acts.submit(db, tenant, user=user)).job_id for user in ("ann", "bob")]

    async with db.tenant_tx(tenant.org_id) as tx:
        assert (await jobs.get(tx, tenant.app.id, anns, "ann")).external_id == "ann"
        with pytest.raises(jobs.JobNotFound):
            await jobs.get(tx, tenant.app.id, bobs, "ann")
        listed = await jobs.list_of_app(tx, tenant.app.id, external_id="ann", state=None, limit=5, before=None)
        whole = await jobs.list_of_app(tx, tenant.app.id, external_id=None, state=None, limit=5, before=None)

    assert [job.id for job in listed] == [anns]
    assert [job.id for job in whole] == [bobs, anns]


async def test_a_submit_under_an_app_of_another_organization_is_refused(
    db: Database, tenant: Tenant, make_tenant: MakeTenant
) -> None:
    other = await make_tenant()

    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await acts.submit(db, tenant, app_id=other.app.id, user="new", price=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "New"}, {"name": "New"}),
        ({"is_active": False}, {"is_active": False}),
        ({"grants": "from_wallet"}, {"grants": "from_wallet"}),
        ({"exposure_cap_mc": 5}, {"exposure_cap_mc": 5}),
        ({"show_costs": True}, {"show_costs": True}),
    ],
)
async def test_each_change_of_an_organization_is_made_and_recorded(
    db: Database, tenant: Tenant, given: dict[str, object], expected: dict[str, object]
) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        before = await organizations.get(tx, tenant.slug)
        await organizations.change(tx, actor="olga", **given)  # type: ignore[arg-type]
        after = await organizations.get(tx, tenant.slug)
        entry = (await audit.list_entries(tx))[0]

    changed = {name: getattr(after, name) for name in before.__slots__ if getattr(after, name) != getattr(before, name)}
    assert changed == expected
    assert (entry["action"], entry["actor"], entry["metadata"]) == ("organization.changed", "olga", expected)


async def test_audit_rows_are_of_their_organization_and_stay(db: Database, make_tenant: MakeTenant) -> None:
    mine, other = await make_tenant(), await make_tenant()
    async with db.tenant_tx(mine.org_id, "limner_operator") as tx:
        await apps.change(tx, mine.app, actor="olga", is_enabled=False)
        assert (await audit.list_entries(tx))[0]["action"] == "app.changed"
    async with db.tenant_tx(other.org_id, "limner_operator") as tx:
        assert "olga" not in str(await audit.list_entries(tx))
    for statement in ("UPDATE limner.audit_log SET actor = 'x'", "DELETE FROM limner.audit_log"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with db.tenant_tx(mine.org_id, "limner_operator") as tx:
                await tx.execute(statement)


@pytest.mark.parametrize("text", ["", " ann", "ann ", "a\nb", "a\x00b", "x" * 256, "\u200b", "a\ufffdb", "\ud800"])
def test_an_external_id_is_printable_and_bounded(text: str) -> None:
    assert not end_users.valid_external_id(text)


@pytest.mark.parametrize("text", ["ann", "x" * 255, "Zoë 東京", "a b", "42", "'; --"])
def test_an_external_id_may_be_any_ordinary_text(text: str) -> None:
    assert end_users.valid_external_id(text)


def test_the_platform_has_no_wallet_and_no_keys(db: Database, superuser: psycopg.Connection) -> None:
    for table in ("wallet", "api_key", "app", "organization"):
        assert acts.count(superuser, f"SELECT count(*) FROM limner.{table} WHERE org_id = %s", UUID(int=0)) == 0
