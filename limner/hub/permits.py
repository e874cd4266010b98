"""What providers take in time: requests and tokens in any window, over all processes (docs/decisions/0029).

A process takes a slice of a provider's permits, hands them out for a second, and gives back what it did not use. The table counts a
slice for as long as a call with one of its permits can still arrive inside the window.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from limner.db.pools import Database
from limner.hub.catalog import Route
from limner.hub.health import Key, Shut, key_of, moment
from limner.kit import ids

ROLE = "limner_dispatch"
REASON = "what providers take is counted over all organizations: ids and numbers only"
VALID_S = 1.0
"""How long a slice's permits are handed out,"""
SEND_S = 1.0
"""how long after that a call may still begin,"""
ARRIVE_S = 2.0
"""and how long it may take from there to the provider: lookups, handshakes, a slow network."""
SLACK_S = VALID_S + SEND_S + ARRIVE_S
AGAIN_S = 1.0
"""How long a process believes that there are none."""
EAGER = 2
"""Those who wait come back twice as fast as permits do: other processes know nothing of them, nor they of those."""
MAX_TURN_S = 600.0
UNBOUNDED = 10**15


@dataclass(slots=True)
class _Slice:
    id: UUID
    requests: int
    tokens: int
    until: float


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave for one call of so many tokens; it may begin until `until` by time.monotonic."""

    key: Key
    slice_id: UUID
    tokens: int
    until: float


@dataclass(slots=True)
class _Store:
    """What this process has of one key's permits."""

    taking: asyncio.Lock = field(default_factory=asyncio.Lock)
    slices: list[_Slice] = field(default_factory=list)
    none_until: float = 0.0
    free_at: float = 0.0
    refused: int = 0


class TooManyTokens(Exception):
    """One call alone needs more tokens than its provider takes in a window."""


class Permits:
    """One for each process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._stores: dict[Key, _Store] = defaultdict(_Store)
        self._back: dict[tuple[Key, UUID], list[int]] = {}

    async def take(self, route: Route, tokens: int) -> Permit | Shut | None:
        """A permit, or when to ask again; None where the provider has no limit. Raises TooManyTokens."""
        if route.requests_per_min is None and route.tokens_per_min is None:
            return None
        key = key_of(route)
        store = self._stores[key]
        needed = 0 if route.tokens_per_min is None else tokens
        if route.tokens_per_min is not None and tokens > route.tokens_per_min:
            raise TooManyTokens
        permit = self._hand_out(key, store, needed)
        if permit is not None:
            return permit
        async with store.taking:
            permit = self._hand_out(key, store, needed)
            if permit is None and store.none_until <= time.monotonic():
                wait_s = await self._fetch(route, key, store, needed)
                permit = self._hand_out(key, store, needed) if wait_s == 0 else None
        if permit is not None:
            store.refused = 0
            return permit
        return self._none(route, store, tokens)

    def give_back(self, permit: Permit, requests: int, tokens: int) -> None:
        """What was not used of it after all."""
        back = self._back.setdefault((permit.key, permit.slice_id), [0, 0])
        back[0] += requests
        back[1] += max(tokens, 0)

    async def tell(self) -> None:
        """Give back what ran out unused."""
        now = time.monotonic()
        for key, store in self._stores.items():
            for ended in [piece for piece in store.slices if piece.until <= now]:
                store.slices.remove(ended)
                self.give_back(Permit(key, ended.id, 0, 0.0), ended.requests, ended.tokens)
        back, self._back = self._back, {}
        rows = [_row(key, piece, requests, tokens) for (key, piece), (requests, tokens) in back.items()]
        if rows:
            async with self._db.system_tx(ROLE, REASON) as tx:
                await tx.execute("SELECT limner.return_permits(%s::text::jsonb)", [orjson.dumps(rows).decode()])

    def _hand_out(self, key: Key, store: _Store, tokens: int) -> Permit | None:
        now = time.monotonic()
        for piece in store.slices:
            if piece.until > now and piece.requests >= 1 and piece.tokens >= tokens:
                piece.requests -= 1
                piece.tokens -= tokens
                return Permit(key, piece.id, tokens, piece.until + SEND_S)
        return None

    async def _fetch(self, route: Route, key: Key, store: _Store, tokens: int) -> float:
        """Another slice, or how long to wait for one."""
        org, provider, of_key = key
        piece, began = ids.new(), time.monotonic()  # before the grant: what runs out here has not run out there
        async with self._db.system_tx(ROLE, REASON) as tx:
            row = await tx.get(
                "SELECT * FROM limner.take_permits(%s, %s, %s, %s, %s, %s::bigint, %s::float8)",
                [org, route.provider_org, provider, of_key, piece, tokens, SLACK_S],
            )
        if row["wait_s"] < 0:
            raise TooManyTokens
        if row["wait_s"] > 0:
            store.free_at = time.monotonic() + row["wait_s"]
            store.none_until = min(store.free_at, time.monotonic() + AGAIN_S)  # others may give some back before
            return float(row["wait_s"])
        has = [UNBOUNDED if row[name] is None else row[name] for name in ("requests", "tokens")]
        store.slices.append(_Slice(piece, has[0], has[1], began + VALID_S))
        return 0.0

    def _none(self, route: Route, store: _Store, tokens: int) -> Shut:
        """Who is refused comes again when it may be his turn, not all at once."""
        store.refused += 1
        calls = (route.requests_per_min, route.tokens_per_min and route.tokens_per_min / max(tokens, 1))
        turn_s = store.refused * 60 / min(count for count in calls if count) / EAGER
        wait_s = max(store.free_at - time.monotonic(), 0.05) + min(turn_s, MAX_TURN_S)
        until = self._db.clock.now() + wait_s
        return Shut("provider_no_permit", until, f"was passed over (no permit to ask it before {moment(until)})")


def _row(key: Key, piece: UUID, requests: int, tokens: int) -> Mapping[str, Any]:
    org, provider, of_key = key
    return {
        "org": org,
        "provider": provider,
        "key": of_key,
        "id": piece,
        "requests": min(requests, 10**9),
        "tokens": tokens,
    }
