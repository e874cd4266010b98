"""Routing is a pure function of the routes and the adapters at hand."""

import itertools
from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from limner.egress.own_keys import SealedKey
from limner.hub import routing
from limner.hub.catalog import Route
from limner.kit import ids


def _route(provider: str, priority: int = 1, adapter: str = "a") -> Route:
    return Route(provider, adapter, None, "m", priority, 0, {}, ids.new())


def test_lower_priority_goes_first_and_the_name_breaks_ties() -> None:
    routes = [_route("zeta", 2), _route("beta", 1), _route("alpha", 2), _route("omega", 1)]

    orders = {
        tuple(c.route.provider for c in routing.order(given, {"a"})[0]) for given in itertools.permutations(routes)
    }

    assert orders == {("beta", "omega", "alpha", "zeta")}, "whatever order the rows came in"


def test_each_rule_says_why_the_provider_stands_where_it_stands() -> None:
    candidates, skipped = routing.order([_route("second", 7), _route("first", 3)], {"a"})

    assert [c.rule for c in candidates] == ["first by priority 3 of 2", "2 of 2 by priority 7, after first failed"]
    assert skipped == []


def test_a_provider_without_an_adapter_here_is_skipped_aloud() -> None:
    candidates, skipped = routing.order([_route("here", 2), _route("elsewhere", 1, "b")], {"a"})

    assert [(c.route.provider, c.rule) for c in candidates] == [("here", "first by priority 2 of 1")]
    assert skipped == [routing.Skipped("elsewhere", "no adapter b")]


def test_nothing_to_choose_from_is_an_empty_choice() -> None:
    assert routing.order([], {"a"}) == ([], [])
    assert routing.order([_route("p")], set())[0] == []


@given(
    st.lists(
        st.builds(_route, st.sampled_from("pqrstuvw"), st.integers(1, 4), st.sampled_from("ab")),
        unique_by=lambda r: r.provider,
    )
)
def test_every_route_is_a_candidate_or_skipped_and_the_order_is_total(routes: list[Route]) -> None:
    candidates, skipped = routing.order(routes, {"a"})

    assert sorted([c.route.provider for c in candidates] + [s.provider for s in skipped]) == sorted(
        r.provider for r in routes
    )
    keys = [(c.route.priority, c.route.provider) for c in candidates]
    assert keys == sorted(keys)
    assert all(f"of {len(candidates)}" in c.rule for c in candidates)


def test_where_only_own_keys_may_be_used_routes_without_one_are_passed_over_but_for_the_local_ones() -> None:
    own = SealedKey(UUID(int=1), UUID(int=2), UUID(int=3), b"")
    routes = [
        replace(_route("keyed", 3, "openai"), own_key=own, own_keys_only=True),
        replace(_route("keyless", 1, "openai"), own_keys_only=True),
        replace(_route("here", 2, "local"), own_keys_only=True),
    ]

    allowed, passed = routing.order(routes, {"openai", "local"})
    held, refused = routing.order(routes, {"openai", "local"}, own_only=True)

    assert [c.route.provider for c in allowed] == ["here", "keyed"]
    assert [(s.provider, s.reason) for s in passed] == [("keyless", "own keys only")]
    assert [c.route.provider for c in held] == ["keyed"]
    assert {s.reason for s in refused} == {"ordered on own keys"}
    assert [c.asked["own_key"] for c in allowed] == [False, True]
