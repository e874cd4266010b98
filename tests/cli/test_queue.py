"""`limner queue`, `limner org set`, `limner app set`: shares, pauses and limits, seen where they take effect."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import psycopg
import pytest

from limner.db.pools import Database
from tests import acts
from tests.cli.conftest import Limner, environment, until
from tests.conftest import MakeTenant, Tenant
from tests.running import Api, Client, Process, free_port

GOOD: dict[str, Any] = {"model": "local/canvas", "input": {"prompt": "a hill", "size": 512}}


@pytest.fixture(autouse=True)
def _everybody_goes_on(limner: Limner) -> Iterator[None]:
    yield
    limner.ok("queue", "resume")


def _line(limner: Limner, slug: str, app: str | None = None) -> dict[str, Any]:
    lines = [x for x in limner.ok("queue")["lines"] if (x["org"], x["app"]) == (slug, app)]
    found: dict[str, Any] = lines[0] if lines else {}
    return found


async def test_mj17_a_paused_organization_is_accepted_waits_and_goes_on(
    limner: Limner, http: aiohttp.ClientSession, api: Api, worker: Process, tenant: Tenant, make_tenant: MakeTenant
) -> None:
    other = await make_tenant()
    ann, bob = Client(http, api.url, tenant.api_key), Client(http, api.url, other.api_key)
    said = limner.ok("queue", "pause", "--org", tenant.slug, "--reason", "looking at something")
    assert said == {"org": tenant.slug, "app": None, "paused": True}

    waiting = (await ann.call("POST", "/api/v1/generate", GOOD)).json["job_id"]
    unwanted = (await ann.call("POST", "/api/v1/generate", GOOD)).json["job_id"]
    theirs = (await bob.call("POST", "/api/v1/generate", GOOD)).json["job_id"]
    assert (await bob.finished(theirs))["status"] == "succeeded", "a pause is nobody else's"
    assert (await ann.call("GET", f"/api/v1/jobs/{waiting}")).json["status"] == "queued"
    assert (await ann.call("POST", f"/api/v1/jobs/{unwanted}/cancel")).json["status"] == "cancelled"

    whole, part = _line(limner, tenant.slug), _line(limner, tenant.slug, "main")
    assert (whole["ready"], part["ready"], part["paused_since"]) == (1, 1, None)
    assert whole["paused_since"] is not None
    shown = limner("queue")
    assert shown.code == 0
    assert tenant.slug in shown.out

    limner.ok("queue", "resume", "--org", tenant.slug)
    assert (await ann.finished(waiting))["status"] == "succeeded"
    actions = [entry["action"] for entry in limner.ok("org", "audit", tenant.slug)["entries"]]
    assert {"queue.paused", "queue.resumed"} <= set(actions)


async def test_mj17_one_app_is_paused_alone(
    limner: Limner, http: aiohttp.ClientSession, api: Api, worker: Process, tenant: Tenant
) -> None:
    limner.ok("app", "create", "second", "--org", tenant.slug, "--welcome", "5")
    key = limner.ok("key", "create", "--org", tenant.slug, "--app", "second", "--all-scopes")["key"]
    limner.ok("queue", "pause", "--org", tenant.slug, "--app", "main", "--reason", "a test")

    first, second = Client(http, api.url, tenant.api_key), Client(http, api.url, key)
    held = (await first.call("POST", "/api/v1/generate", GOOD)).json["job_id"]
    free = (await second.call("POST", "/api/v1/generate", GOOD)).json["job_id"]

    assert (await second.finished(free))["status"] == "succeeded"
    assert (await first.call("GET", f"/api/v1/jobs/{held}")).json["status"] == "queued"
    assert limner("queue", "resume", "--org", tenant.slug, "--app", "main").out.strip().endswith("goes on")
    assert (await first.finished(held))["status"] == "succeeded"


async def test_a_drain_waits_until_nothing_runs_and_the_doctor_remembers_the_pause(
    limner: Limner, http: aiohttp.ClientSession, api: Api, worker: Process, tenant: Tenant
) -> None:
    ann = Client(http, api.url, tenant.api_key)
    drained = limner("queue", "drain", "--timeout", "60", "--json")
    assert (drained.code, drained.json) == (0, {"drained": True, "running": 0})

    job_id = (await ann.call("POST", "/api/v1/generate", GOOD)).json["job_id"]
    status = limner.ok("queue")
    assert (status["running"], status["paused_since"] is not None) == (0, True)
    assert (await ann.call("GET", f"/api/v1/jobs/{job_id}")).json["status"] == "queued"
    said = limner("doctor", "--json", env={"LIMNER_PORT": str(free_port())})
    [check] = [c for c in said.json["checks"] if c["name"] == "queue"]
    assert (said.code, check["ok"]) == (0, True)
    paused = check["found"].removeprefix("paused: ").split(", ")
    assert "everybody" in paused, "and whomever other tests have left so"
    assert "resume" in check["fix"]

    assert limner("queue", "resume").out == "everybody goes on\n"
    assert (await ann.finished(job_id))["status"] == "succeeded"
    assert limner("queue", "resume").out == "everybody was not paused\n"


async def test_a_drain_that_takes_too_long_says_so(
    limner: Limner, db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)  # a worker is there, and does not take it
    job_id = (await acts.submit(db, tenant, run_at=later)).job_id
    superuser.execute(
        "UPDATE limner.job_queue SET phase = 'leased', lease_owner = 'test', fence = fence + 1,"
        " claimable_at = clock_timestamp() + interval '1 hour' WHERE job_id = %s",
        [job_id],
    )

    said = limner("queue", "drain", "--timeout", "1")

    assert said.code == 1
    assert "1 jobs still run after 1 s" in said.err
    superuser.execute("UPDATE limner.job_queue SET claimable_at = clock_timestamp() WHERE job_id = %s", [job_id])


def test_watching_shows_the_queue_until_it_is_ended(limner: Limner) -> None:
    log = limner.folder / "watch.log"
    with log.open("wb") as out:
        watching = subprocess.Popen(
            [sys.executable, "-m", "limner", "queue", "--watch"], env=environment(limner.home) | {"FORCE_COLOR": "1"},
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=limner.folder,
        )  # fmt: skip
    try:
        until(lambda: log.read_text().count("ready") >= 2)
    finally:
        watching.send_signal(signal.SIGTERM)
        watching.wait(20)
    assert "Traceback" not in log.read_text()


def test_shares_limits_and_retention_are_set_shown_and_lifted(limner: Limner) -> None:
    slug = f"s-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    limner.ok("app", "create", "web", "--org", slug)

    org = limner.ok("org", "set", slug, "--weight", "3", "--max-running", "5", "--jobs-per-min", "90", "--max-open", "40",
                    "--monthly-credits", "12")  # fmt: skip
    app = limner.ok("app", "set", "web", "--org", slug, "--weight", "2", "--max-running", "4", "--jobs-per-min", "80",
                    "--user-jobs-per-min", "7", "--monthly-credits", "3", "--keep-days", "30", "--keep-jobs", "0")  # fmt: skip

    names: tuple[str, ...] = ("weight", "max_running", "jobs_per_min", "max_open", "monthly_credits")
    assert [org[name] for name in names] == [3, 5, 90, 40, "12"]
    names = ("weight", "max_running", "jobs_per_min", "user_jobs_per_min", "monthly_credits", "keep_days", "keep_jobs")
    assert [app[name] for name in names] == [2, 4, 80, 7, "3", 30, 0]
    line = _line(limner, slug, "web")
    assert (line["weight"], line["max_running"]) == (2, 4)
    lifted = limner.ok("org", "set", slug, "--max-running", "none", "--jobs-per-min", "none", "--max-open", "none")
    assert [lifted[name] for name in ("weight", "max_running", "jobs_per_min", "max_open")] == [3, None, None, None]
    kept = limner.ok("app", "set", "web", "--org", slug, "--keep-days", "none", "--keep-jobs", "none")
    assert (kept["keep_days"], kept["keep_jobs"], kept["user_jobs_per_min"]) == (None, None, 7)
    shown = limner.ok("org", "show", slug)
    assert (shown["weight"], shown["monthly_credits"]) == (3, "12")
    actions = [entry["action"] for entry in limner.ok("org", "audit", slug)["entries"]]
    assert (actions.count("organization.limited"), actions.count("app.limited"), actions.count("queue.shared")) == (
        2,
        2,
        3,
    )


async def test_mj17_a_providers_cap_is_set_shown_full_and_lifted(
    limner: Limner, db: Database, make_tenant: MakeTenant
) -> None:
    tenant = await make_tenant()
    org = ("--org", tenant.slug)
    (limner.folder / "box.json").write_text(
        json.dumps({"name": "gpu-box", "display_name": "Box", "adapter": "nobodys"})
    )
    limner.ok("providers", "put", str(limner.folder / "box.json"), *org)
    model = {"name": "own/model", "display_name": "Own", "kind": "image", "price": "1",
             "input_schema": {"type": "object", "additionalProperties": False, "properties": {}}}  # fmt: skip
    (limner.folder / "model.json").write_text(json.dumps(model))
    limner.ok("models", "put", str(limner.folder / "model.json"), *org)
    assert limner("routes", "put", "own/model", "gpu-box", "--provider-model", "m", *org).code == 0

    def listed() -> list[dict[str, Any]]:
        return [one for one in limner.ok("queue")["providers"] if one["org"] == tenant.slug]

    assert listed() == []
    assert limner.ok("providers", "set", "gpu-box", "--max-running", "1", *org)["max_running"] == 1
    seen = {"provider": "gpu-box", "org": tenant.slug, "running": 0, "max_running": 1, "full": False, "enabled": True}
    assert listed() == [seen]
    assert limner("providers", "set", "gpu-box", "--max-running", "2", *org).out == (
        "provider gpu-box has at most 2 jobs at once\n"
    )
    limner.ok("providers", "put", str(limner.folder / "box.json"), *org)
    assert listed() == [seen | {"max_running": 2}], "a file that says nothing of it leaves it as it is"
    shown = limner("queue")
    assert (shown.code, "gpu-box" in shown.out) == (0, True)
    [provider] = [p for p in limner.ok("providers", "list", *org)["providers"] if p["name"] == "gpu-box"]
    assert provider["max_running"] == 2
    (limner.folder / "box.json").write_text(json.dumps(provider | {"max_running": 7}))
    assert limner.ok("providers", "put", str(limner.folder / "box.json"), *org)["max_running"] == 7
    lifted = limner("providers", "set", "gpu-box", "--max-running", "none", *org)
    assert (lifted.code, lifted.out) == (0, "provider gpu-box has any number of jobs at once\n")
    assert listed() == []
    changes = [e for e in limner.ok("org", "audit", tenant.slug)["entries"] if e["action"] == "provider.changed"]
    assert len(changes) == 3


def test_mj17_a_full_provider_is_seen_to_be_full(limner: Limner, superuser: psycopg.Connection) -> None:
    """By the rows under lease, of whatever organization."""
    slug = f"s-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    limner.ok("app", "create", "web", "--org", slug)
    (limner.folder / "box.json").write_text(
        json.dumps({"name": "box", "display_name": "Box", "adapter": "nobodys", "max_running": 2})
    )
    limner.ok("providers", "put", str(limner.folder / "box.json"), "--org", slug)
    for _ in range(2):
        with superuser.transaction():
            superuser.execute("SET LOCAL session_replication_role = replica")  # rows of the queue alone
            superuser.execute(
                "INSERT INTO limner.job_queue (org_id, job_id, app_id, wallet_id, hold_mc, priority, phase, claimable_at, max_runs,"
                " deadline_at, provider_id) SELECT a.org_id, gen_random_uuid(), a.id, a.org_id, 0, 50, 'leased', now() + interval '1 day',"
                " 3, now() + interval '1 day', p.id FROM limner.organization o JOIN limner.app a ON a.org_id = o.org_id"
                " JOIN limner.provider p ON p.org_id = o.org_id WHERE o.slug = %s",
                [slug],
            )
    try:
        [one] = [x for x in limner.ok("queue")["providers"] if x["org"] == slug]
    finally:
        superuser.execute(
            "DELETE FROM limner.job_queue q USING limner.organization o WHERE q.org_id = o.org_id AND o.slug = %s",
            [slug],
        )

    assert (one["running"], one["max_running"], one["full"]) == (2, 2, True)


async def test_a_limit_that_was_set_holds(
    limner: Limner, http: aiohttp.ClientSession, api: Api, tenant: Tenant
) -> None:
    limner.ok("app", "set", "main", "--org", tenant.slug, "--user-jobs-per-min", "1")
    ann = Client(http, api.url, tenant.api_key)

    answers = [await ann.call("POST", "/api/v1/generate", GOOD) for _ in range(2)]

    assert [a.status for a in answers] == [202, 429]
    assert answers[0].headers["ratelimit-policy"] == '"user";q=1;w=60'


@pytest.mark.parametrize(
    "arguments",
    [("org", "set", "any"), ("app", "set", "web", "--org", "any"), ("org", "set", "any", "--weight", "0"),
     ("org", "set", "any", "--max-running", "0"), ("org", "set", "any", "--max-running", "many"),
     ("app", "set", "web", "--org", "any", "--user-jobs-per-min", "6001"),
     ("app", "set", "web", "--org", "any", "--keep-days", "-3"), ("org", "set", "any", "--monthly-credits", "1.5"),
     ("providers", "set", "local"), ("providers", "set", "local", "--max-running", "0"),
     ("providers", "set", "local", "--max-running", "-1"), ("providers", "set", "local", "--max-running", "1.5"),
     ("providers", "set", "local", "--max-running", "many"), ("providers", "set", "local", "--max-running", "1000001"),
     ("queue", "pause"), ("queue", "pause", "--app", "web", "--reason", "x"), ("queue", "drain", "--timeout", "0"),
     ("queue", "--watch", "--json")],
)  # fmt: skip
def test_wrong_usage_is_exit_2(limner: Limner, arguments: tuple[str, ...]) -> None:
    assert limner(*arguments).code == 2
