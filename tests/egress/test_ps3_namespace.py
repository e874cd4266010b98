"""PS3 with the kernel as the judge: in a network of its own every address answers, and whoever connects is seen."""

from pathlib import Path

import pytest

from tests import tiers
from tests.egress import hostile, namespace
from tests.egress.stage import GOOD, GOOD_6
from tests.tally import Tally


def test_ps3_the_judge_sees_whoever_connects_without_a_door(tmp_path: Path) -> None:
    seen = namespace.run("watched", tmp_path)

    assert seen["attempts"] == 6
    assert seen["accepted"] == {
        "127.0.0.1 443": 2, "169.254.169.254 443": 1, "10.0.0.1 443": 1, "fd00:ec2::254 443": 1, "192.168.0.1 443": 1,
    }  # fmt: skip


def test_ps3_no_hostile_url_opens_a_connection(tmp_path: Path) -> None:
    assert len(set(hostile.HOSTILE)) >= 150

    seen = namespace.run("all_hostile", tmp_path)

    assert seen["codes"] == {"destination_not_allowed": 2 * len(hostile.HOSTILE)}
    assert (seen["attempts"], seen["accepted"]) == (0, {})
    # what is refused by its text is not even looked up
    assert seen["questions"] == 2 * 2 * (len(hostile.HOSTILE) - len(hostile.WRITTEN))


@pytest.mark.parametrize("every", tiers.counts(pr=5, long=1))
def test_ps3_no_redirect_leads_anywhere_else(tmp_path: Path, every: int) -> None:
    seen = namespace.run("redirects", tmp_path, str(every))

    tried = len(hostile.HOSTILE[::every])
    assert sum(seen["codes"].values()) == tried
    assert seen["codes"]["destination_not_allowed"] > tried / 2
    assert list(seen["accepted"]) == [f"{GOOD} 443"]
    assert seen["attempts"] == seen["accepted"][f"{GOOD} 443"] >= tried


@pytest.mark.parametrize("requests", tiers.counts(pr=60, long=1000))
def test_ps3_names_that_change_their_minds_never_lead_inside(tmp_path: Path, requests: int, tally: Tally) -> None:
    seen = namespace.run("flips", tmp_path, str(requests))

    assert set(seen["accepted"]) <= {f"{GOOD} 443", f"{GOOD_6} 443"}
    assert seen["attempts"] == sum(seen["accepted"].values()) == seen["codes"]["200"] > 0
    assert seen["codes"]["destination_not_allowed"] == requests - seen["codes"]["200"] > 0
    assert seen["questions"] == 2 * requests, "a name is asked for once: A and AAAA"
    tally("PS3", requests=requests, refused=seen["codes"]["destination_not_allowed"], inside=0)


def test_ps3_a_name_is_resolved_once_so_there_is_nothing_to_rebind(tmp_path: Path) -> None:
    seen = namespace.run("rebound", tmp_path)

    assert seen["codes"] == ["200", "destination_not_allowed"]
    assert seen["questions"] == 4
    assert (seen["attempts"], seen["accepted"]) == (1, {f"{GOOD} 443": 1})


def test_ps3_the_address_policy_suffices_without_the_rules_about_text(tmp_path: Path) -> None:
    seen = namespace.run("policy_alone", tmp_path)

    public = {"8.8.8.8 443", "1.2.3.4 443", "2606:4700::1111 443"}  # refused as addresses, not as these
    assert set(seen["accepted"]) == public
    assert seen["attempts"] == len(public)
    assert seen["codes"] == {"destination_not_allowed": seen["tried"] - len(public), "connect_failed": len(public)}
    assert seen["tried"] > 80


def test_ps3_the_network_suffices_without_the_address_policy(tmp_path: Path) -> None:
    without = namespace.run("nothing_holds", tmp_path)
    behind = namespace.run("network_alone", tmp_path)

    assert len(_inside(without["accepted"])) > 25, "the control: with neither there is a way inside"
    assert _inside(behind["accepted"]) == set()
    assert f"{GOOD} 443" in behind["accepted"]


def _inside(accepted: dict[str, int]) -> set[str]:
    """Neither the public addresses of the scenario nor the namespace's own loopback."""
    return {place for place in accepted if not place.startswith(("93.184.216.", GOOD_6, "127.", "::1 "))}


def test_ps3_what_is_allowed_is_asked_by_name_past_proxies_and_netrc(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    proxy = "http://10.9.9.9:3128"
    env = {name: proxy for upper in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") for name in (upper, upper.lower())}

    seen = namespace.run(
        "honest", tmp_path, env=env | {"NETRC": str(tmp_path / "netrc"), "NO_PROXY": "", "no_proxy": ""}
    )

    assert seen["codes"] == ["200", "200", "200", "connect_failed"]
    assert seen["accepted"] == {f"{GOOD} 443": 2, f"{GOOD_6} 443": 1, f"{GOOD} 8443": 2}
    assert seen["names"] == ["good.example.com", "six.example.com", *["good.example.com"] * 2, "good.example.net"]
    hosts = [line for head in seen["heads"] for line in head.splitlines() if line.startswith("Host: ")]
    assert hosts == ["Host: good.example.com", "Host: six.example.com", *["Host: good.example.com:8443"] * 2]
    assert "authorization" not in "".join(seen["heads"]).lower()


def test_door_1_reaches_its_hosts_by_https_and_nobody_else(tmp_path: Path) -> None:
    seen = namespace.run("fixed", tmp_path, env={"HTTPS_PROXY": "http://10.9.9.9:3128"})

    assert seen["codes"] == ["200", "302", *["destination_not_allowed"] * 5]
    assert seen["accepted"].keys() == {f"{GOOD} 443"}
    assert seen["attempts"] == sum(seen["accepted"].values())
    assert len(seen["heads"]) == 2
    assert all(head.lower().count("authorization: bearer sk-secret\r\n") == 1 for head in seen["heads"])
