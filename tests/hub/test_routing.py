"""Routing is a pure function of the routes and the adapters at hand."""

import itertools
from collections import Counter
from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from limner.egress.own_keys import SealedKey
from limner.hub import routing
from limner.hub.catalog import Route
from limner.hub.pricing import Tokens
from limner.hub.routing import Asking
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


def _routed(name: str, rule: str, **facts: object) -> Route:
    return replace(_route(name), routing=rule, provider_id=UUID(int=sum(name.encode())), **facts)  # type: ignore[arg-type]


def _names(routes: list[Route], asked: Asking) -> list[str]:
    return [c.route.provider for c in routing.order(routes, {"a"}, asked)[0]]


def test_weights_draw_lots_by_the_jobs_id_and_the_same_id_draws_the_same() -> None:
    routes = [
        _routed("one", "weight", weight=1),
        _routed("three", "weight", weight=3),
        _routed("late", "weight", priority=2),
    ]
    jobs = [Asking(UUID(int=n * 7919)) for n in range(2000)]

    orders = [_names(routes, asked) for asked in jobs]

    first = Counter(names[0] for names in orders)
    assert 0.70 < first["three"] / len(jobs) < 0.80
    assert {names[2] for names in orders} == {"late"}, "weights draw among equal priorities"
    assert orders == [_names(routes, asked) for asked in jobs]
    rule = routing.order(routes, {"a"}, jobs[0])[0][0].rule
    assert "drawn by weight" in rule
    assert rule.endswith("the job's id, of 3")


def test_cost_is_of_this_request() -> None:
    flat = _routed("flat", "cost", cost_micro_usd=500)
    by_tokens = _routed("by-tokens", "cost", input_cost_micro_usd=1_000_000, output_cost_micro_usd=2_000_000)

    assert _names([flat, by_tokens], Asking(UUID(int=1), Tokens(100, 0, 100))) == ["by-tokens", "flat"]
    assert _names([flat, by_tokens], Asking(UUID(int=1), Tokens(500, 0, 100))) == ["flat", "by-tokens"]
    assert routing.order([flat], {"a"})[0][0].rule == "first by cost (500 micro-USD expected) of 1"


def test_latency_asks_the_quickest_and_whoever_was_not_measured_before_it() -> None:
    slow, quick = _routed("slow", "latency", latency_ms=900.0), _routed("quick", "latency", latency_ms=80.0)

    assert _names([slow, quick], Asking(UUID(int=1))) == ["quick", "slow"]
    assert _names([slow, quick, _routed("new", "latency")], Asking(UUID(int=1))) == ["new", "quick", "slow"]
    assert routing.order([quick, slow], {"a"})[0][0].rule == "first by latency (80 ms of late) of 2"


def test_whoever_was_passed_over_stands_in_the_rule_of_the_next() -> None:
    third = routing.order([_route("a", 1), _route("b", 2), _route("c", 3)], {"a"})[0][2]

    assert routing.after(third, [("a", ""), ("b", "")]) == third
    assert (
        routing.after(third, [("a", "was full"), ("b", "")]).rule
        == "3 of 3 by priority 3, after a was full and b failed"
    )
    assert routing.after(third, [("a", ""), ("b", "was full")]).rule == "3 of 3 by priority 3, after b was full"


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
