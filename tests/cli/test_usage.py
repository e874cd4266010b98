"""`limner usage`: what was used, charged and paid for, of one organization or of all."""

import csv
import io

import psycopg

from limner.cli.usage import money_of
from limner.db.pools import Database
from limner.hub.usage import Line
from tests import acts
from tests.cli.conftest import Limner
from tests.conftest import MakeTenant, Tenant

WORTH = {"LIMNER_CREDIT_MICRO_USD": "10000"}


async def lived(db: Database, tenant: Tenant, superuser: psycopg.Connection) -> str:
    """One credit charged for ten micro-dollars, a quarter of it refunded; the job's id."""
    acts.empty_queue(superuser)
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.work(db, job_id)
    await acts.refund(db, tenant, job_id, 250, "r")
    return str(job_id)


async def test_an_operator_sees_cost_and_where_a_credit_has_a_value_the_margin(
    limner: Limner, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    await lived(db, tenant, superuser)
    asked = ("usage", "--org", tenant.slug, "--group-by", "model,provider")

    [line] = limner(*asked, "--json", env=WORTH).json["usage"]
    [unvalued] = limner.ok(*asked)["usage"]

    assert line == {
        "organization": tenant.slug, "model": "test/painter", "provider": "local", "jobs": 1, "credits": "1", "refunded": "0.25",
        "cost_micro_usd": 10, "value_micro_usd": 7500, "margin_micro_usd": 7490,
    }  # fmt: skip
    assert unvalued == line | {"value_micro_usd": None, "margin_micro_usd": None}
    said = limner(*asked, env=WORTH).out
    assert "$0.00749" in said
    assert "margin" not in limner(*asked).out
    assert limner.ok("org", "audit", tenant.slug)["entries"][0]["action"] == "usage.read"


async def test_a_csv_of_all_organizations_has_each_line_once(
    limner: Limner, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenants = [await make_tenant(), await make_tenant()]
    for tenant in tenants:
        await lived(db, tenant, superuser)

    said = limner("usage", "--csv", "--group-by", "user,kind", env=WORTH)

    lines = [
        line for line in csv.DictReader(io.StringIO(said.out)) if line["organization"] in {t.slug for t in tenants}
    ]
    assert [(line["user_id"], line["kind"], line["quantity"], line["margin_micro_usd"]) for line in lines] == [
        ("ann", "image", "1", "7490")
    ] * 2


async def test_days_apps_and_limits_narrow_it_down(
    limner: Limner, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    await lived(db, tenant, superuser)

    assert limner.ok("usage", "--org", tenant.slug, "--from", "2020-01-01", "--to", "2020-12-31")["usage"] == []
    assert len(limner.ok("usage", "--org", tenant.slug, "--app", "main", "--limit", "1")["usage"]) == 1
    assert "Nothing was used" in limner("usage", "--org", tenant.slug, "--to", "2020-12-31").out


def test_what_cannot_be_asked_is_wrong_usage(limner: Limner, tenant: Tenant) -> None:
    for wrong in (["--group-by", "hour"], ["--group-by", "day,day"], ["--from", "yesterday"], ["--csv", "--json"], ["--app", "main"],
                  ["--org", tenant.slug, "--from", "2026-02-01", "--to", "2026-01-01"]):  # fmt: skip
        assert limner("usage", *wrong).code == 2, wrong
    assert limner("usage", "--org", "nobody").code == 1


def test_a_margin_is_rounded_to_the_next_millionth_of_a_dollar() -> None:
    line = Line((), None, None, 1, 1, price_mc=1001, refunded_mc=0, cost_micro_usd=3)

    assert money_of(line, 500) == {"cost_micro_usd": 3, "value_micro_usd": 501, "margin_micro_usd": 498}


async def test_an_operators_receipt_says_what_each_attempt_cost_also_where_the_tenant_is_not_told(
    limner: Limner, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    job_id = await lived(db, tenant, superuser)
    superuser.execute(
        "INSERT INTO limner.provider_call (org_id, job_id, step, provider, send_no, run, fence, provider_model, rule, idem_key, state,"
        " cost_micro_usd) VALUES (%s, %s, 'main', 'local', 1, 1, 1, 'x', 'priority 1', 'k', 'done', 10)",
        [tenant.org_id, job_id],
    )

    receipt = limner.ok("jobs", "receipt", job_id, "--org", tenant.slug)

    assert receipt["provider_cost_micro_usd"] == receipt["attempts"][0]["cost_micro_usd"] == 10
    assert "$0.00001" in limner("jobs", "receipt", job_id, "--org", tenant.slug).out
