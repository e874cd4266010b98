"""What is left of a limit, as headers say it; and the calls of an API key that cost nothing, counted in this process."""

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from limner.web.errors import ApiError

WINDOW_S = 60
KEYS = 50_000
CLOCKS_APART_S = 0.05
NEARLY = 0.1
"""The database's clock lags a little as a process knows it: without these seconds and part of a token a fresh bucket seems one short."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit of `size` a minute, whose bucket is in `pieces` of which one is full again in `full_in_s` seconds.

    `spent`: it refused just now.
    """

    name: str
    size: int
    full_in_s: float
    pieces: int = 1
    spent: bool = False

    @property
    def remaining(self) -> int:
        if self.spent:
            return 0
        share = self.size // self.pieces if self.pieces > 1 else self.size
        used_s = max(0.0, self.full_in_s - CLOCKS_APART_S)
        return max(0, math.floor(share * (WINDOW_S - used_s) / WINDOW_S + NEARLY)) * self.pieces

    @property
    def reset_s(self) -> int:
        return max(0, math.ceil(self.full_in_s - CLOCKS_APART_S))


def headers(quotas: Sequence[Quota], policies: Sequence[tuple[str, int]] = ()) -> dict[str, str]:
    """`RateLimit-Policy`, `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11) and `X-RateLimit-*` for the tightest.

    `policies`: (name, size) of every limit that holds, where more hold than are told about in `quotas`.
    """
    if not quotas:
        return {}
    told = [(q.remaining, q.size, q.reset_s, q.name) for q in quotas]
    remaining, size, reset_s, _ = min(told)
    held = policies or [(q.name, q.size) for q in quotas]
    return {
        "ratelimit-policy": ", ".join([f'"{name}";q={size};w={WINDOW_S}' for name, size in held]),
        "ratelimit": ", ".join([f'"{name}";r={left};t={reset}' for left, _, reset, name in told]),
        "x-ratelimit-limit": str(size),
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(reset_s),
    }


def refusal(limit: str, size: int, retry_after_s: float, message: str, rate_headers: dict[str, str]) -> ApiError:
    """429 that names the limit, its size and when to come again."""
    wait_s = max(1, math.ceil(retry_after_s))
    return ApiError(
        429, "rate_limited", message, extra={"limit": limit, "limit_size": size, "retry_after": wait_s},
        headers={"retry-after": str(wait_s), **rate_headers},
    )  # fmt: skip


class KeyLimit:
    """Token buckets of `per_min` calls for each API key (0: no limit), kept as the time at which each is full again.

    In the process: these calls cost no credits, so that several API processes together allow several times as much.
    `name` is the limit's on the wire, and the word for what is counted.
    """

    def __init__(self, name: str, per_min: int) -> None:
        self._name = name
        self._per_min = per_min
        self._full_at: OrderedDict[UUID, float] = OrderedDict()

    def take(self, key_id: UUID) -> Quota | None:
        """What is left after this call; None where there is no limit. Raises ApiError 429."""
        if not self._per_min:
            return None
        now = time.monotonic()
        step_s = WINDOW_S / self._per_min
        full_at = max(self._full_at.get(key_id, now), now) + step_s
        if full_at > now + WINDOW_S + step_s / 2:
            held = full_at - step_s - now
            message = f"More than {self._per_min} {self._name} a minute with this key: try again in a moment."
            raise refusal(
                self._name,
                self._per_min,
                held + step_s - WINDOW_S,
                message,
                headers([Quota(self._name, self._per_min, held, spent=True)]),
            )
        self._full_at[key_id] = full_at
        self._full_at.move_to_end(key_id)
        if len(self._full_at) > KEYS:
            self._full_at.popitem(last=False)
        return Quota(self._name, self._per_min, full_at - now)
