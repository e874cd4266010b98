"""Keys by command: shown once, rotated with an overlap, ended."""

from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from tests.cli.conftest import Limner


@pytest.fixture
def org(limner: Limner) -> str:
    slug = f"k-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    limner.ok("app", "create", "web", "--org", slug)
    return slug


def test_a_keys_text_is_printed_once_and_nowhere_else(limner: Limner, org: str) -> None:
    said = limner("key", "create", "--org", org, "--app", "web")

    text = said.out.strip()
    assert text.startswith("lmn_live_")
    listed = limner("key", "list", "--org", org)
    assert text not in listed.out
    assert text[:15] in listed.out
    assert limner.ok("key", "list", "--org", org)["keys"][0]["scopes"] == ["jobs:create", "jobs:read", "users:read"]


def test_a_successor_has_the_scopes_and_the_lifetime(limner: Limner, org: str) -> None:
    old = limner.ok("key", "create", "--org", org, "--app", "web", "--scope", "jobs:read", "--expires", "10")

    new = limner.ok("key", "rotate", old["prefix"], "--org", org, "--overlap", "60")

    assert new["scopes"] == ["jobs:read"]
    assert _lifetime(new) == pytest.approx(timedelta(days=10), abs=timedelta(seconds=60))
    keys = {key["id"]: key for key in limner.ok("key", "list", "--org", org, "--app", "web")["keys"]}
    assert datetime.fromisoformat(keys[old["id"]]["expires_at"]) - datetime.fromisoformat(
        new["created_at"]
    ) < timedelta(minutes=2)


def test_an_ended_key_has_no_successor(limner: Limner, org: str) -> None:
    key = limner.ok("key", "create", "--org", org, "--app", "web")
    assert limner.ok("key", "revoke", key["id"], "--org", org)["revoked_at"] is not None

    said = limner("key", "rotate", key["id"], "--org", org)

    assert said.code == 1
    assert "has ended" in said.err
    assert len(limner.ok("key", "list", "--org", org)["keys"]) == 1


def test_an_unknown_scope_makes_no_key(limner: Limner, org: str) -> None:
    said = limner("key", "create", "--org", org, "--app", "web", "--scope", "jobs:create", "--scope", "jobs:delete")

    assert said.code == 1
    assert "unknown scope jobs:delete" in said.err
    assert limner.ok("key", "list", "--org", org)["keys"] == []
    assert limner("key", "create", "--org", org, "--app", "web", "--scope", "jobs:read", "--all-scopes").code == 2


def test_another_organizations_key_is_absent(limner: Limner, org: str) -> None:
    key = limner.ok("key", "create", "--org", org, "--app", "web")
    other = f"k-{uuid4().hex[:10]}"
    limner.ok("org", "create", other)

    said = limner("key", "revoke", key["id"], "--org", other)

    assert said.code == 1
    assert "there is no key" in said.err


def _lifetime(key: dict[str, str]) -> timedelta:
    return datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
