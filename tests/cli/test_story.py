"""From an empty organization to a refund by commands alone, the job over HTTP; and what is refused on the way."""

from uuid import uuid4

import aiohttp

from tests.cli.conftest import Limner
from tests.running import Api, Client, Process


async def test_from_an_organization_to_a_refund(
    limner: Limner, http: aiohttp.ClientSession, api: Api, worker: Process
) -> None:
    slug = f"s-{uuid4().hex[:10]}"
    org = limner.ok("org", "create", slug, "--name", "Story", "--exposure-cap", "100")
    assert org["exposure_cap"] == "100"
    limner.ok("app", "create", "web", "--org", slug, "--welcome", "5")
    made = limner("key", "create", "--org", slug, "--app", "web", "--name", "server", "--all-scopes", "--json")
    assert "only time" in made.err
    key = made.json["key"]
    assert key.startswith(made.json["prefix"])
    granted = limner.ok("user", "grant", "ann", "7.5", "--org", slug, "--app", "web", "--ref", "g1")
    assert granted["balance"] == "12.5"

    ann = Client(http, api.url, key)
    accepted = await ann.generate("local/canvas", input={"prompt": "a hill", "size": 512, "num_outputs": 2})
    job = await ann.finished(accepted.json["job_id"])
    assert job["status"] == "succeeded"

    shown = limner.ok("jobs", "show", job["job_id"], "--org", slug)
    assert (shown["status"], shown["charged"], shown["user_id"]) == ("succeeded", "2", "ann")
    assert "input" not in shown
    receipt = limner.ok("jobs", "receipt", job["job_id"], "--org", slug)
    assert (receipt["credits"]["before"], receipt["credits"]["after"]) == ("12.5", "10.5")
    refund = ["ledger", "refund", job["job_id"], "0.75", "--org", slug, "--reason", "Too dark", "--ref", "r1"]
    assert limner.ok(*refund) | {"transfer_id": None} == {
        "transfer_id": None, "credits": "0.75", "replayed": False, "balance": "11.25", "ref": "r1",
    }  # fmt: skip
    assert limner.ok(*refund)["replayed"] is True

    lines = limner.ok("ledger", "statement", "--org", slug, "--app", "web", "--user", "ann")["lines"]
    assert [(line["kind"], line["change"], line["balance"]) for line in lines] == [
        ("refund", "0.75", "11.25"), ("post", "0", "10.5"), ("hold", "-2", "10.5"), ("grant", "7.5", "12.5"), ("grant", "5", "5"),
    ]  # fmt: skip
    assert "Too dark" in lines[0]["why"]
    older = limner.ok("ledger", "statement", "--org", slug, "--app", "web", "--user", "ann", "--before", "3")["lines"]
    assert [line["number"] for line in older] == [2, 1]
    assert limner.ok("user", "show", "ann", "--org", slug, "--app", "web")["wallet"] == {
        "available": "11.25",
        "held": "0",
        "owed": "0",
        "lots": [],
    }
    books = limner.ok("invariants", "--org", slug)
    assert books["violations"] == 0
    assert len(books["invariants"]) == 15

    actions = [entry["action"] for entry in limner.ok("org", "audit", slug)["entries"]]
    assert actions[::-1][:4] == ["organization.created", "app.created", "api_key.created", "end_user.granted"]
    assert actions.count("job.refunded") == 1
    assert "wallet.read" in actions


def test_what_does_not_exist_is_one_line_and_exit_1(limner: Limner) -> None:
    for arguments, words in {
        ("org", "show", "nobody"): "there is no organization nobody",
        ("app", "list", "--org", "nobody"): "there is no organization nobody",
        ("models", "show", "none/such"): "there is no model none/such",
        ("providers", "disable", "nobody"): "there is no provider nobody",
        ("routes", "remove", "local/canvas", "nobody"): "did not serve",
    }.items():
        said = limner(*arguments)
        assert said.code == 1
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert words in said.err
        assert said.err.count("\n") == 1


def test_a_slug_is_taken_once_and_must_be_one(limner: Limner) -> None:
    slug = f"s-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)

    again, wrong = limner("org", "create", slug), limner("org", "create", "Not A Slug")

    assert (again.code, wrong.code) == (1, 1)
    assert "exists" in again.err
    assert "a-z, 0-9 and -" in wrong.err
    assert len([o for o in limner.ok("org", "list")["organizations"] if o["slug"] == slug]) == 1


def test_a_reference_moves_credits_once(limner: Limner) -> None:
    slug = f"s-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug, "--grants", "from_wallet")
    limner.ok("app", "create", "web", "--org", slug)
    topup = ["org", "topup", slug, "20", "--ref", "invoice 1"]

    assert limner.ok(*topup)["replayed"] is False
    assert limner.ok(*topup)["replayed"] is True
    other = limner("org", "topup", slug, "21", "--ref", "invoice 1")
    assert other.code == 1
    assert "reference" in other.err
    limner.ok("user", "grant", "ann", "5", "--org", slug, "--app", "web", "--ref", "g")
    assert limner("user", "grant", "ann", "6", "--org", slug, "--app", "web", "--ref", "g").code == 1
    limner.ok("user", "grant", "bob", "6", "--org", slug, "--app", "web", "--ref", "g")  # another user's reference
    tooth = limner("user", "grant", "ann", "100", "--org", slug, "--app", "web")
    assert tooth.code == 1
    assert "9 credits are there, 100 are needed" in tooth.err
    assert limner.ok("org", "show", slug)["wallet"] == {"available": "9", "held": "0", "owed": "0", "lots": []}


def test_bad_amounts_are_wrong_usage(limner: Limner) -> None:
    for amount in ("1.2345", "0", "1e3", "many"):
        said = limner("org", "topup", "nobody", amount)
        assert said.code == 2, amount
        assert "CREDITS" in said.err


def test_changes_show(limner: Limner) -> None:
    slug = f"s-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug, "--exposure-cap", "5.5")
    limner.ok("app", "create", "web", "--org", slug)

    assert limner.ok("org", "change", slug, "--name", "New")["exposure_cap"] == "5.5"
    assert limner.ok("org", "change", slug, "--exposure-cap", "none", "--show-costs")["exposure_cap"] is None
    assert limner.ok("org", "disable", slug)["active"] is False
    assert limner.ok("org", "enable", slug)["active"] is True
    assert limner.ok("app", "change", "web", "--org", slug, "--welcome", "0.5")["welcome"] == "0.5"
    assert limner.ok("app", "change", "web", "--org", slug, "--body-users")["body_users"] is True
    assert limner.ok("app", "change", "web", "--org", slug, "--no-body-users")["body_users"] is False
    assert limner.ok("app", "disable", "web", "--org", slug)["enabled"] is False
    limner.ok("user", "grant", "ann", "1", "--org", slug, "--app", "web")
    assert limner.ok("user", "metadata", "ann", '{"plan": "gold"}', "--org", slug, "--app", "web")["metadata"] == {
        "plan": "gold"
    }
    assert limner.ok("user", "disable", "ann", "--org", slug, "--app", "web")["active"] is False
    assert limner("user", "metadata", "ann", "[1]", "--org", slug, "--app", "web").code == 2
    assert limner("org", "change", slug).code == 2


def test_names_with_markup_and_escapes_are_shown_as_they_are(limner: Limner) -> None:
    slug = f"s-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug, "--name", "[bold]A[/nope]")
    limner.ok("app", "create", "web", "--org", slug)
    limner.ok("user", "grant", "ann", "1", "--org", slug, "--app", "web", "--reason", "[red]gift[/]")

    assert "[bold]A[/nope]" in limner("org", "show", slug).out
    assert "[red]gift[/]" in limner("ledger", "statement", "--org", slug, "--app", "web", "--user", "ann").out
    assert limner("org", "create", slug + "x", "--name", "a\x1b[31m").code == 2
