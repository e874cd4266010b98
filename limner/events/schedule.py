"""When a delivery that failed is tried again: ten tries over about 75 hours (Standard Webhooks' recommendation)."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

DELAYS_S = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds before each try, counted from the end of the one before."""
JITTER = 0.2
MAX_RETRY_AFTER_S = 86_400.0
THROTTLED = frozenset({429, 502, 503, 504})
"""Statuses whose Retry-After is kept to."""


def delay_s(tries: int, luck: float, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next try after so many; None when there is none any more.

    `luck`, from 0 to 1, spreads the tries of what failed together by JITTER to either side. `retry_after_s` makes it
    longer, never shorter: a receiver that says "at once" does not turn the schedule into a storm.
    """
    if tries >= len(DELAYS_S):
        return None
    planned = DELAYS_S[tries] * (1 - JITTER + 2 * JITTER * luck)
    return max(planned, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S))


def retry_after_s(text: str | None, now: float) -> float | None:
    """A Retry-After header (RFC 9110, 10.2.3): seconds, or a date compared with `now` in epoch seconds; None for anything else."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return max(0.0, (moment - datetime.fromtimestamp(now, UTC)).total_seconds())
    except OverflowError:
        return None
