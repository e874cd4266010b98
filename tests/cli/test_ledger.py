"""What operators do to the books by command: credits that end, corrections, debts, a job's story, closed days."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts
from tests.cli.conftest import Limner
from tests.conftest import MakeTenant, Tenant

ENDS = "2031-05-01T12:00:00+02:00"


@pytest.fixture
def whose(tenant: Tenant) -> list[str]:
    return ["--org", tenant.slug, "--app", "main", "--user", "ann"]


def test_a_grant_may_be_a_bonus_and_end_and_the_user_shows_its_lots(limner: Limner, tenant: Tenant) -> None:
    where = ["--org", tenant.slug, "--app", "main"]

    limner.ok("user", "grant", "ann", "2.5", *where, "--kind", "bonus", "--expires", ENDS, "--ref", "g")
    again = limner.ok("user", "grant", "ann", "2.5", *where, "--kind", "bonus", "--expires", ENDS, "--ref", "g")
    reused = limner("user", "grant", "ann", "2.5", *where, "--ref", "g")
    past = limner("user", "grant", "ann", "1", *where, "--expires", "2020-01-01")
    shown = limner.ok("user", "show", "ann", *where)

    assert again["replayed"] is True
    assert (reused.code, past.code) == (1, 1)
    assert "in the past" in past.err
    assert shown["wallet"] == {
        "available": "1002.5", "held": "0", "owed": "0",
        "lots": [{"kind": "bonus", "left": "2.5", "granted": "2.5", "expires_at": "2031-05-01T10:00:00Z"}],
    }  # fmt: skip
    assert "2031-05-01 10:00:00Z" in limner("user", "show", "ann", *where).out


def test_a_top_up_may_be_a_bonus_and_end_and_the_organization_shows_its_wallet(limner: Limner, tenant: Tenant) -> None:
    bonus = ["org", "topup", tenant.slug, "2.5", "--kind", "bonus", "--expires", ENDS, "--ref", "t"]

    limner.ok("org", "topup", tenant.slug, "7")
    first, again = limner.ok(*bonus), limner.ok(*bonus)
    other_end = limner(*bonus[:6], "--expires", "2032-05-01", "--ref", "t")
    no_end, other_kind = limner(*bonus[:6], "--ref", "t"), limner(*bonus[:4], "--expires", ENDS, "--ref", "t")
    past = limner("org", "topup", tenant.slug, "1", "--expires", "2020-01-01")
    shown = limner.ok("org", "show", tenant.slug)

    assert (first["replayed"], again["replayed"], again["balance"]) == (False, True, "9.5")
    assert [said.code for said in (other_end, no_end, other_kind, past)] == [1, 1, 1, 1]
    assert "other parameters" in other_end.err
    assert "in the past" in past.err
    assert limner("org", "topup", tenant.slug, "1", "--kind", "gift").code == 2
    assert limner("org", "topup", tenant.slug, "1", "--expires", "soon").code == 2
    assert shown["wallet"] == {
        "available": "9.5", "held": "0", "owed": "0",
        "lots": [{"kind": "bonus", "left": "2.5", "granted": "2.5", "expires_at": "2031-05-01T10:00:00Z"}],
    }  # fmt: skip
    said = limner("org", "show", tenant.slug).out
    assert "2031-05-01 10:00:00Z" in said
    assert "bonus" in said
    lines = limner.ok("ledger", "statement", "--org", tenant.slug)["lines"]
    assert [(line["kind"], line["change"]) for line in lines] == [("bonus", "2.5"), ("grant", "7")]


def test_what_an_organization_owes_is_shown_and_paid_by_the_next_top_up(limner: Limner, tenant: Tenant) -> None:
    limner.ok("org", "topup", tenant.slug, "3", "--expires", ENDS)
    limner.ok("ledger", "clawback", "5", "--org", tenant.slug, "--reason", "Reversed")
    owing = limner.ok("org", "show", tenant.slug)["wallet"]
    said = limner("org", "show", tenant.slug).out
    paid = limner.ok("org", "topup", tenant.slug, "6", "--expires", ENDS)

    assert owing == {"available": "0", "held": "0", "owed": "2", "lots": []}
    assert "2" in said.split("owed")[1].splitlines()[0]
    assert paid["balance"] == "4"
    assert limner.ok("org", "show", tenant.slug)["wallet"] == {
        "available": "4", "held": "0", "owed": "0",
        "lots": [{"kind": "grant", "left": "4", "granted": "6", "expires_at": "2031-05-01T10:00:00Z"}],
    }  # fmt: skip


def test_a_correction_under_the_same_reference_keeps_its_end(limner: Limner, whose: list[str]) -> None:
    up = ["ledger", "adjust", "5", *whose, "--reason", "Miscounted", "--ref", "u"]

    assert limner.ok(*up, "--expires", ENDS)["replayed"] is False
    assert limner.ok(*up, "--expires", ENDS)["replayed"] is True
    assert limner(*up).code == 1
    assert limner(*up, "--expires", "2032-01-01").code == 1


def test_corrections_go_up_down_and_into_debt(limner: Limner, tenant: Tenant, whose: list[str]) -> None:
    up = limner.ok("ledger", "adjust", "5", *whose, "--reason", "Miscounted", "--expires", "2031-05-01", "--ref", "u")
    down = limner.ok("ledger", "adjust", "1000", *whose, "--reason", "Miscounted", "--down", "--ref", "d")
    too_far = limner("ledger", "adjust", "6", *whose, "--reason", "Miscounted", "--down")
    taken = limner.ok("ledger", "clawback", "7", *whose, "--reason", "Reversed", "--ref", "c")
    again = limner("ledger", "clawback", "7", *whose, "--reason", "Reversed", "--ref", "c")

    assert (up["balance"], down["balance"], down["credits"]) == ("1005", "5", "-1000")
    assert (too_far.code, "holds less" in too_far.err) == (1, True)
    assert (taken["taken"], taken["owed"], taken["balance"]) == ("5", "2", "0")
    assert again.out.startswith("nothing done: under the reference c 5 credits were taken before and 2 became a debt")
    assert "2" in limner("user", "show", "ann", *whose[:4]).out.split("owed")[1].splitlines()[0]
    lines = limner.ok("ledger", "statement", *whose, "--kind", "adjustment", "--kind", "clawback")["lines"]
    assert [(line["kind"], line["change"]) for line in lines] == [
        ("clawback", "-5"), ("adjustment", "-1000"), ("adjustment", "5"),
    ]  # fmt: skip
    actions = [entry["action"] for entry in limner.ok("org", "audit", tenant.slug)["entries"]]
    assert (actions.count("wallet.adjusted"), actions.count("wallet.clawed_back")) == (2, 1)


def test_the_organizations_own_wallet_is_corrected_without_a_user(limner: Limner, tenant: Tenant) -> None:
    up = limner.ok("ledger", "adjust", "5", "--org", tenant.slug, "--reason", "Miscounted")
    taken = limner.ok("ledger", "clawback", "2", "--org", tenant.slug, "--reason", "Reversed")

    assert (up["balance"], taken["balance"], taken["owed"]) == ("5", "3", "0")


@pytest.mark.parametrize(
    "wrong",
    [["adjust", "1", "--user", "ann"], ["clawback", "1", "--app", "main"], ["adjust", "1", "--down", "--expires", ENDS],
     ["adjust", "1", "--expires", "2031-05-01T00:00:00"], ["adjust", "1", "--expires", "soon"], ["adjust", "-1"]],
)  # fmt: skip
def test_what_cannot_be_meant_is_wrong_usage(limner: Limner, tenant: Tenant, wrong: list[str]) -> None:
    assert limner("ledger", *wrong, "--org", tenant.slug, "--reason", "x").code == 2


async def test_a_statement_is_filtered(limner: Limner, db: Database, tenant: Tenant, whose: list[str]) -> None:
    job_id = (await acts.submit(db, tenant)).job_id
    await acts.cancel(db, tenant, job_id)

    of_job = limner.ok("ledger", "statement", *whose, "--job", str(job_id))["lines"]
    later = limner.ok("ledger", "statement", *whose, "--since", "2100-01-01")["lines"]
    before = limner.ok("ledger", "statement", *whose, "--until", datetime.now(UTC).isoformat(), "--kind", "grant")

    assert [line["kind"] for line in of_job] == ["void", "hold"]
    assert later == []
    assert len(before["lines"]) == 1
    assert limner("ledger", "statement", *whose, "--kind", "gift").code == 2


async def test_a_jobs_money_is_explained_in_plain_words(
    limner: Limner, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    acts.empty_queue(superuser)
    tenant = await make_tenant(credits=2)
    await acts.grant(db, tenant, 3 * MC, kind="bonus", expires_at=datetime(2031, 5, 1, tzinfo=UTC))
    job_id = (await acts.submit(db, tenant, price=5)).job_id
    await acts.work(db, job_id, charge_mc=3_500)
    await acts.refund(db, tenant, job_id, MC, "r")

    story = limner.ok("ledger", "explain", str(job_id), "--org", tenant.slug)

    assert [part["words"] for part in story["story"]] == [
        "5 credits set aside: 3 of a bonus that ends 2031-05-01 00:00 UTC, 2 that never ends",
        "3.5 credits charged: 3 of a bonus that ends 2031-05-01 00:00 UTC, 0.5 that never ends; 1.5 not needed and back",
        "1 credit refunded: sorry; 0.5 of it until 2031-05-01 00:00 UTC",
    ]
    assert (story["user_id"], story["charged"], story["refunded"]) == ("ann", "3.5", "1")
    assert "paid by" in limner("ledger", "explain", str(job_id), "--org", tenant.slug).out
    assert limner("ledger", "explain", str(UUID(int=7)), "--org", tenant.slug).code == 1


async def test_the_story_tells_what_lapsed_on_the_way_and_what_failed(
    limner: Limner, db: Database, make_tenant: MakeTenant, superuser: psycopg.Connection
) -> None:
    tenant = await make_tenant(credits=1)
    await acts.grant(db, tenant, 2 * MC, expires_at=datetime.now(UTC) + timedelta(days=2))
    job_id = (await acts.submit(db, tenant, price=3)).job_id
    acts.pass_time(superuser, tenant.org_id, timedelta(days=3))
    await acts.cancel(db, tenant, job_id)

    story = limner.ok("ledger", "explain", str(job_id), "--org", tenant.slug)["story"]

    assert [part["what"] for part in story] == ["hold", "void", "expire"]
    assert story[1]["words"] == "Nothing charged: the job was cancelled (cancelled); 3 credits back"
    assert story[2]["words"] == "2 credits of what came back had ended meanwhile and lapsed"


async def test_complete_days_are_closed_once_and_shown(
    limner: Limner, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    yesterday = str((datetime.now(UTC) - timedelta(days=1, minutes=10)).date())
    superuser.execute("ALTER TABLE limner.transfer DISABLE TRIGGER append_only")
    moved = "UPDATE limner.transfer SET created_at = %s WHERE org_id = %s"
    superuser.execute(moved, [f"{yesterday}T12:00:00Z", tenant.org_id])
    superuser.execute("ALTER TABLE limner.transfer ENABLE TRIGGER append_only")

    first = limner.ok("ledger", "close", "--org", tenant.slug)
    again = limner.ok("ledger", "close", "--org", tenant.slug, "--day", yesterday)
    today = limner("ledger", "close", "--org", tenant.slug, "--day", str(datetime.now(UTC).date()))

    assert first == again == {"sums": [{
        "organization": tenant.slug, "day": yesterday, "book": "issuance", "kind": "grant", "out": "1000", "in": "0",
        "transfers": 1,
    }]}  # fmt: skip
    assert (today.code, "ten minutes after it ended" in today.err) == (1, True)
    assert limner("ledger", "close").code == 0
    assert await acts.books(db, tenant.org_id) == {}
