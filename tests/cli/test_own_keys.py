"""Organizations' own keys and AI settings, by command."""

from uuid import uuid4

import pytest

from tests.cli.conftest import Limner, Said

KEY = "sk-typed-by-an-operator-6b1f"


@pytest.fixture
def org(limner: Limner) -> str:
    slug = f"o-{uuid4().hex[:10]}"
    limner.ok("org", "create", slug)
    limner.ok("providers", "add", "box", "https://api.openai.com/v1", "--org", slug)
    return slug


def add(limner: Limner, org: str, typed: str) -> Said:
    return limner("providers", "keys", "add", "box", "--org", org, typed=typed)


def test_a_key_comes_by_standard_input_and_is_told_by_its_end(limner: Limner, org: str) -> None:
    at = ("--org", org)

    done = add(limner, org, f"{KEY}\nmore that is not read\n")

    assert (done.code, done.err) == (0, "")
    assert "…6b1f" in done.out
    [listed] = limner.ok("providers", "keys", "list", *at)["provider_keys"]
    assert (listed["provider"], listed["last4"], listed["sent_to"]) == ("box", "6b1f", "https://api.openai.com")
    assert limner.ok("providers", "keys", "disable", "box", *at)["enabled"] is False
    assert limner.ok("providers", "keys", "enable", "box", *at)["enabled"] is True
    assert limner("providers", "keys", "remove", "box", *at).code == 0
    assert limner.ok("providers", "keys", "list", *at)["provider_keys"] == []
    audit = limner("org", "audit", org).out
    assert all(word in audit for word in ("provider_key.put", "provider_key.switched", "provider_key.removed"))
    assert KEY not in audit + done.out + str(listed)


def test_no_key_is_taken_from_the_command_line_and_none_that_cannot_be_one(limner: Limner, org: str) -> None:
    by_argument = limner("providers", "keys", "add", "box", KEY, "--org", org)
    nothing = limner("providers", "keys", "add", "box", "--org", org)
    bad = add(limner, org, "not a key\n")

    assert (by_argument.code, nothing.code, bad.code) == (2, 2, 1)
    assert "12 to 512" in bad.err
    assert limner.ok("providers", "keys", "list", "--org", org)["provider_keys"] == []


@pytest.mark.parametrize("verb", ["enable", "disable", "remove"])
def test_what_is_not_there_is_said(limner: Limner, org: str, verb: str) -> None:
    said = limner("providers", "keys", verb, "box", "--org", org)

    assert (said.code, said.err) == (1, "error: there is no own key for box\n")


def test_ai_settings_are_shown_and_changed_one_by_one(limner: Limner, org: str) -> None:
    nothing = {"default_models": {}, "tone": "", "own_keys_only": False, "byok_fee_percent": 0}
    assert limner.ok("org", "ai", org) == nothing

    limner.ok("org", "ai", org, "--default", "image.generate=local/canvas", "--tone", "Plain.")
    both = limner.ok("org", "ai", org, "--own-keys-only", "--byok-fee", "15")

    assert both == {
        "default_models": {"image.generate": "local/canvas"},
        "tone": "Plain.",
        "own_keys_only": True,
        "byok_fee_percent": 15,
    }
    assert (
        limner.ok(
            "org", "ai", org, "--default", "image.generate=none", "--tone", "none", "--any-keys", "--byok-fee", "0"
        )
        == nothing
    )
    assert "15 %" not in limner("org", "ai", org).out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--default", "text.generate"), 2),
        (("--default", "text.generate=no/such"), 1),
        (("--default", "text.generate=local/canvas"), 1),
        (("--tone", "x" * 2001), 2),
        (("--byok-fee", "101"), 2),
    ],
)
def test_what_is_no_setting_is_refused(limner: Limner, org: str, options: tuple[str, ...], code: int) -> None:
    assert limner("org", "ai", org, *options).code == code


def test_resealing_without_an_old_root_key_has_nothing_to_do(limner: Limner, org: str) -> None:
    assert limner.ok("db", "reseal") == {"keys": 0, "webhook_secrets": 0, "broken": 0}
