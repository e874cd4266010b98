"""Ten tries over about 75 hours, spread, and never sooner than a receiver asks."""

import pytest

from limner.events import schedule

HOUR_S = 3600
PLAN = [5, 300, 1800, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S, 24 * HOUR_S]
NOW = 1_800_000_000.0


def test_nine_waits_between_ten_tries_and_then_no_more() -> None:
    assert [schedule.delay_s(tries, 0.5) for tries in range(1, 12)] == [*map(pytest.approx, PLAN), None, None]


def test_the_waits_are_spread_by_a_fifth_to_either_side() -> None:
    for tries, planned in enumerate(PLAN, start=1):
        assert schedule.delay_s(tries, 0.0) == pytest.approx(planned * 0.8)
        assert schedule.delay_s(tries, 1.0) == pytest.approx(planned * 1.2)


@pytest.mark.parametrize(
    ("asked_s", "wait_s"), [(0, 5), (1, 5), (60, 60), (86_400, 86_400), (10**9, 86_400)]
)  # fmt: skip
def test_a_receiver_may_ask_for_more_time_up_to_a_day_and_never_for_less(asked_s: float, wait_s: float) -> None:
    assert schedule.delay_s(1, 0.5, asked_s) == wait_s


def test_whoever_asks_for_time_gets_no_more_tries() -> None:
    assert schedule.delay_s(10, 0.5, 60) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None), ("", None), ("120", 120), (" 120 ", 120), ("-5", None), ("1.5", None), ("soon", None), ("9" * 50, 999_999_999),
        ("Fri, 15 Jan 2027 08:00:00 GMT", 0), ("Fri, 15 Jan 2027 08:01:40 GMT", 100), ("Fri, 15 Jan 2021 08:01:40 GMT", 0),
        ("Fri, 15 Jan 2027 08:01:40", 100), ("Fri, 15 Jan 99999 08:01:40 GMT", None), ("\u0663", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_nothing_else(text: str | None, seconds: float | None) -> None:
    assert schedule.retry_after_s(text, NOW) == seconds
