"""Waiting for a task at a provider: how often it is asked after, and what it means when it cannot be."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from limner.egress.answers import Answer
from limner.hub.providers import verdicts
from limner.hub.providers.base import ConfigInvalid, Hook, ProviderCall, ProviderError

POLL_S = 1.0
MIN_POLL_S, MAX_POLL_S = 0.05, 60.0
GROWTH, SLOWEST = 1.3, 5.0
"""Each pause is so many times the one before, up to so many times the first."""
ASK_S = 15.0
LAST_WORDS_S = 5.0
"""Kept of a call's time to call the task off in, at most a quarter of it."""
MAX_RETRY_AFTER_S = 60.0
T = TypeVar("T")
Ask = Callable[[float], Awaitable[Answer]]
"""Asks after the task once, within so many seconds. Raises ProviderError where there is no answer."""
Read = Callable[[Answer], Awaitable[T | None]]
"""What an answer says: the end of the task, or None while it is under way. Raises ProviderError for a task that failed."""


def poll_s(config_value: object) -> float:
    """The first pause, as a configuration says it. Raises ConfigInvalid."""
    number = isinstance(config_value, int | float) and not isinstance(config_value, bool)
    if not number or not MIN_POLL_S <= config_value <= MAX_POLL_S:  # type: ignore[operator]
        raise ConfigInvalid(f"config.poll_s must be a number of seconds from {MIN_POLL_S} to {MAX_POLL_S:g}")
    return float(config_value)  # type: ignore[arg-type]


def ends_at(call: ProviderCall) -> float:
    """Until when a call's task is waited for, on the running loop's clock."""
    return asyncio.get_running_loop().time() + call.timeout_s - min(LAST_WORDS_S, call.timeout_s / 4)


async def wait(ask: Ask, read: Read[T], until: float, first_s: float, hook: Hook) -> T:
    """Ask again and again until the task has ended; sooner where the provider says that there is news.

    Raises what `read` says of a task that failed, and, with an unknown outcome, since the task stands: provider_timeout when
    `until` is there, and a refusal that waiting does not change.
    """
    clock = asyncio.get_running_loop().time
    pause_s = first_s
    while True:
        wait_s = 0.0
        try:
            answer = await ask(max(min(ASK_S, until - clock()), 0.1))
            if answer.status < 300 or answer.status == 404:
                ended = await read(answer)
                if ended is not None:
                    return ended
            else:
                raise _refusal(answer)
        except AskAgain as again:
            wait_s = again.retry_after_s
        if clock() + pause_s >= until:
            words = "The provider's task was not done in time."
            raise ProviderError("provider_timeout", words, "retryable", outcome_unknown=True)
        if wait_s > pause_s:  # it said how long
            await asyncio.sleep(min(wait_s, max(until - clock(), 0.0)))
        else:
            await hook.pause(min(pause_s, max(until - clock(), 0.0)))
        pause_s = min(pause_s * GROWTH, first_s * SLOWEST)


class AskAgain(Exception):
    """There was no answer that says anything about the task."""

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__("ask again")
        self.retry_after_s = min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)


def unanswered(error: ProviderError) -> Exception:
    """What a failed question means: to ask again, unless asking again cannot help. The task stands either way."""
    if error.kind in {"retryable", "rate"}:
        return AskAgain(error.retry_after_s)
    return ProviderError(error.code, error.message, error.kind, outcome_unknown=True)


def _refusal(answer: Answer) -> Exception:
    code = verdicts.by_status(answer.status)
    return unanswered(verdicts.failure(code, answer.status, verdicts.retry_after_s(answer.headers)))
