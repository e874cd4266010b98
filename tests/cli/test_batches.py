"""`limner batch`: a file of items ordered as an app does, and what an operator sees of it and may end."""

import json
from pathlib import Path
from typing import Any

import psycopg

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts
from tests.cli.conftest import Limner
from tests.conftest import Tenant
from tests.running import Api, Process

ITEM: dict[str, Any] = {"input": {"prompt": "a hare"}}


def a_file(folder: Path, items: list[Any]) -> str:
    path = folder / "items.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in items) + "\n\n")
    return str(path)


async def test_a_file_is_ordered_waited_for_and_shown(
    limner: Limner, api: Api, worker: Process, tenant: Tenant, tmp_path: Path
) -> None:
    items = [
        ITEM,
        {**ITEM, "model": "local/extract", "input": {"text": "It froze. It thawed.", "task": "summarise"}},
        ITEM,
    ]
    as_app = {"KEY": tenant.api_key, "LIMNER_URL": api.url}
    asked = ("batch", "submit", a_file(tmp_path, items), "--model", "local/canvas", "--user", "ann")

    done = limner.ok(*asked, "--idempotency-key", "one", "--wait", env=as_app)
    again = limner.ok(*asked, "--idempotency-key", "one", env=as_app)
    told = limner(*asked, "--cancel-after", "600", "--priority", "9", env=as_app)
    in_org = (done["batch_id"], "--org", tenant.slug)
    shown = limner.ok("batch", "show", *in_org)
    items_shown = limner.ok("batch", "items", *in_org)["items"]
    listed = limner.ok("batch", "list", "--org", tenant.slug, "--app", "main")["batches"]

    assert (done["status"], done["succeeded"], done["failed"]) == ("completed", 3, 0)
    assert again["batch_id"] == done["batch_id"]
    assert (told.code, "3 items, 3 credits on hold" in told.out) == (0, True), told.out
    assert (shown["total"], shown["succeeded"], shown["on_hold"]) == (3, 3, "0")
    assert [(item["index"], item["status"]) for item in items_shown] == [(n, "succeeded") for n in range(3)]
    assert "input" not in items_shown[0]
    assert [batch["batch_id"] for batch in listed][1:] == [done["batch_id"]]
    for words in (("show", *in_org), ("items", *in_org, "--status", "succeeded"), ("list", "--org", tenant.slug)):
        assert limner("batch", *words).code == 0
    assert "canvas" in limner("batch", "items", *in_org).out
    assert limner("batch", "cancel", *in_org).code == 1


async def test_an_operator_ends_a_batch(
    limner: Limner, api: Api, tenant: Tenant, tmp_path: Path, db: Database, superuser: psycopg.Connection
) -> None:
    superuser.execute("UPDATE limner.queue_policy SET paused_at = now() WHERE org_id = %s", [tenant.org_id])
    env = {"KEY": tenant.api_key, "LIMNER_URL": api.url}
    path = a_file(tmp_path, [ITEM] * 5)
    batch_id = limner.ok("batch", "submit", path, "--model", "local/canvas", "--user", "ann", env=env)["batch_id"]

    cancelled = limner.ok("batch", "cancel", batch_id, "--org", tenant.slug)
    again = limner("batch", "cancel", batch_id, "--org", tenant.slug)

    assert cancelled == {"batch_id": batch_id, "status": "cancelled"}
    assert (again.code, "before" in again.out) == (0, True)
    assert (await acts.wallet(db, tenant)).available_mc == 1000 * MC
    actions = "SELECT action FROM limner.audit_log WHERE org_id = %s AND entity_type = 'batch'"
    assert superuser.execute(actions, [tenant.org_id]).fetchall() == [("batch.cancelled",)] * 2
    assert limner("batch", "show", str(tenant.org_id), "--org", tenant.slug).code == 1


async def test_what_cannot_be_ordered_is_told_with_its_line(
    limner: Limner, api: Api, tenant: Tenant, tmp_path: Path
) -> None:
    env = {"KEY": tenant.api_key, "LIMNER_URL": api.url}
    (tmp_path / "torn.jsonl").write_text('{"input": {}}\n{"input": \n')

    wrong = limner(
        "batch", "submit", a_file(tmp_path, [ITEM, {"input": {}}]), "--model", "local/canvas", "--user", "ann", env=env
    )
    torn = limner("batch", "submit", str(tmp_path / "torn.jsonl"), env=env)
    listed = limner("batch", "submit", a_file(tmp_path, [[1]]), env=env)
    absent = limner("batch", "submit", str(tmp_path / "none.jsonl"), env=env)
    keyless = limner(
        "batch", "submit", a_file(tmp_path, [ITEM]), "--key-file", str(tmp_path / "none"), env={"LIMNER_URL": api.url}
    )
    nobody = limner(
        "batch", "submit", a_file(tmp_path, [ITEM]), "--model", "local/canvas", env=env | {"KEY": "lmn_live_x"}
    )

    assert (wrong.code, "/items/1/input/prompt is required" in wrong.err) == (1, True), wrong.err
    assert (torn.code, "line 2" in torn.err) == (2, True)
    assert (listed.code, absent.code, keyless.code, nobody.code) == (2, 2, 2, 1)
