"""Routing, limits and health by command."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

import pytest

from limner.db.pools import Database
from tests.cli.conftest import Limner
from tests.cli.test_catalog import MODEL, _file
from tests.emulators import openai_server


@pytest.fixture
def org(limner: Limner) -> str:
    slug = f"h-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    limner.ok("models", "put", _file(limner.folder, MODEL), "--org", slug)
    return slug


def test_a_models_routing_is_set_and_shown_and_travels_in_its_file(limner: Limner, org: str) -> None:
    set_to = limner.ok(
        "models", "set", "acme/poster", "--routing", "weight", "--next-on", "retryable,content", "--org", org
    )
    assert (set_to["routing"], set_to["next_on"]) == ("weight", ["retryable", "content"])

    limner.ok(
        "routes", "put", "acme/poster", "local", "--provider-model", "local/canvas", "--weight", "7", "--org", org
    )
    shown = limner.ok("models", "show", "acme/poster", "--org", org)

    assert shown["routes"][0]["weight"] == 7
    put = limner.ok("models", "put", _file(limner.folder, shown), "--org", org)
    assert (put["routing"], put["next_on"]) == ("weight", ["retryable", "content"])
    assert limner("models", "set", "acme/poster", "--next-on", "often", "--org", org).code == 2
    assert limner("models", "set", "acme/poster", "--org", org).code == 2
    assert limner("models", "set", "acme/nothing", "--routing", "cost", "--org", org).code == 1
    assert limner("models", "put", _file(limner.folder, shown | {"routing": "luck"}), "--org", org).code == 2
    assert limner("models", "put", _file(limner.folder, shown | {"next_on": "content"}), "--org", org).code == 2


def test_a_providers_limits_are_set_and_lifted_and_one_that_cannot_be_kept_is_refused(limner: Limner, org: str) -> None:
    limner.ok("providers", "add", "far", "http://127.0.0.1:1/v1", "--org", org)

    said = limner("providers", "set", "far", "--requests-per-min", "1000", "--window-s", "3", "--org", org)
    assert "1,000 requests a minute (50 in 3 s)" in said.out
    set_to = limner.ok("providers", "set", "far", "--tokens-per-min", "40000", "--max-running", "5", "--org", org)
    assert (set_to["requests_per_min"], set_to["tokens_per_min"], set_to["max_running"]) == (1000, 40000, 5)
    lifted = limner.ok("providers", "set", "far", "--requests-per-min", "none", "--org", org)

    assert lifted["requests_per_min"] is None
    refused = limner("providers", "set", "far", "--requests-per-min", "5", "--org", org)
    assert (refused.code, "less than one request" in refused.err) == (1, True)
    assert limner("providers", "set", "far", "--org", org).code == 2
    assert limner("providers", "set", "far", "--tokens-per-min", "0", "--org", org).code == 2


def test_providers_are_tested_one_by_one_and_the_health_page_remembers(limner: Limner, org: str) -> None:
    limner.ok("providers", "add", "down", "http://127.0.0.1:1/v1", "--org", org)
    unknown = {p["name"]: p["state"] for p in limner.ok("providers", "health", "--org", org)["providers"]}
    assert unknown["down"] == "unknown"

    said = limner(
        "providers", "test", "--json", "--org", org, env={"LIMNER_EGRESS_PLAIN_ORIGINS": "http://127.0.0.1:1"}
    )

    (told,) = [p for p in said.json["providers"] if p["provider"] == "down"]
    assert (said.code, told["ok"], told["error"]) == (1, False, "provider_unreachable")
    health = {p["name"]: p for p in limner.ok("providers", "health", "--org", org)["providers"]}
    assert (health["down"]["state"], health["down"]["last_error"]) == ("degraded", "provider_unreachable")
    page = limner("providers", "health", "--org", org)
    assert "DEGRADED" in page.out
    assert limner("providers", "test", "nobody", "--org", org).code == 1


async def test_an_answer_closes_the_breaker(limner: Limner, org: str, db: Database, tmp_path: Path) -> None:
    async with openai_server.running("sk-1") as far:
        env = {name: str(value) for name, value in far.environment.items()}
        limner.ok("providers", "add", "far", far.url, "--org", org)
        async with db.system_tx("limner_dispatch", "a breaker that a worker opened") as tx:
            row = await tx.get(
                "SELECT id, org_id FROM limner.provider WHERE org_id <> %s ORDER BY id DESC LIMIT 1", [uuid4()]
            )
            query = "SELECT limner.open_breaker(%s, %s, %s, 'provider_auth', 300, 300, NULL)"
            await tx.execute(query, [row["org_id"], row["id"], "00000000-0000-0000-0000-000000000000"])
        (before,) = [p for p in limner.ok("providers", "health", "--org", org)["providers"] if p["name"] == "far"]
        assert (before["state"], before["open_until"] is not None) == ("down", True)

        said = await asyncio.to_thread(limner, "providers", "test", "far", "--json", "--org", org, env=env)

    assert json.loads(said.out)["providers"][0]["ok"], said.err
    (after,) = [p for p in limner.ok("providers", "health", "--org", org)["providers"] if p["name"] == "far"]
    assert (after["state"], after["open_until"]) == ("healthy", None)
