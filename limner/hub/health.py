"""How providers fare: a circuit breaker for each provider and key, shared by all processes through a small table.

A process counts in memory. It writes when a breaker opens or closes and when a provider asks for a rest; the rest goes in batches.
What others saw comes with the cached routes, within a second. Every moment is the database's.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import psycopg

from limner.db.context import PLATFORM
from limner.db.pools import AWAY, Database
from limner.db.tx import Tx
from limner.hub.catalog import Route
from limner.hub.endings import Failure
from limner.hub.remembered import ROUTES_S
from limner.kit import ids
from limner.telemetry import logs

ROLE = "limner_dispatch"
REASON = "how providers fare is everybody's: ids and states only"
HERE = "local"
"""The adapter of this machine's own work: how it fares depends on the request, and there is nobody to leave in peace."""
LOOKED_AT = 20
WITHIN_S = 60.0
PROBE_LEASE_S = 10.0
MEANWHILE_S = 0.5
BY_ROUTES_S = 2 * ROUTES_S
"""When what was written is known from the routes: an operator may have changed it since."""
MAX_REST_S = 3600.0
APART_S = 0.02
MAX_APART_S = 30.0
Key = tuple[UUID, UUID, UUID]
"""Whose key it is, the provider, the key."""
log = logs.get("health")


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """`failures` in a row open a breaker (0: nothing does), or `ratio` of the last twenty calls of a minute.

    It stays open for `pause_s`, after each probe that fails for twice as long, at most and for a refused key `long_pause_s`.
    """

    failures: int = 0
    ratio: float = 0.5
    pause_s: float = 15.0
    long_pause_s: float = 300.0


NO_BREAKER = BreakerSettings()


@dataclass(frozen=True, slots=True)
class Shut:
    """A provider is not asked before `until`, by the database's clock; `words`: as it stands on a receipt."""

    code: str
    until: float
    words: str


@dataclass(frozen=True, slots=True)
class Probe:
    """The right to ask a provider whose breaker is open. None has an id: its breaker is closed."""

    id: UUID | None = None


NO_PROBE = Probe()


@dataclass(frozen=True, slots=True)
class _Lately:
    """A moment that this process decided on; from `known_at` on it is known, or was changed, by the routes."""

    until: float
    known_at: float

    def at(self, now: float) -> float:
        return self.until if now < self.known_at else 0.0


NOT_LATELY = _Lately(0.0, 0.0)


@dataclass(slots=True)
class _Seen:
    """What this process saw of one key since it began; `unsaid`: something of it is not in the table yet."""

    failures: int = 0
    calls: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=LOOKED_AT))
    last_error: str | None = None
    latency_ms: float | None = None
    opened: _Lately = NOT_LATELY
    rests: _Lately = NOT_LATELY
    ask_at: float = 0.0
    refused: int = 0
    unsaid: bool = False


class Health:
    """One for each process."""

    def __init__(self, db: Database, settings: BreakerSettings) -> None:
        self._db = db
        self._settings = settings
        self._seen: dict[Key, _Seen] = {}
        self._probes: set[UUID] = set()

    async def look(self, route: Route) -> Probe | Shut:
        """Whether the provider may be asked now. Costs a statement only where its breaker is open and its pause over."""
        seen = self._seen.get(key_of(route))
        now = self._db.clock.now()
        rest_until = max(route.rest_until, seen.rests.at(now) if seen else 0.0)
        if rest_until > now:
            return Shut(
                "provider_resting", rest_until, f"was passed over (it asked for a rest until {moment(rest_until)})"
            )
        if not self._settings.failures or route.adapter == HERE:
            return NO_PROBE
        open_until = max(route.open_until, seen.opened.at(now) if seen else 0.0)
        if open_until > now:
            return _open(open_until, self._of(route))
        return NO_PROBE if open_until == 0.0 else await self._probe(route)  # a route may be older than the breaker

    async def answered(self, route: Route, probe: Probe, latency_ms: float) -> None:
        """The provider did its part, also where it refused the request for good reasons."""
        seen = self._of(route)
        seen.failures = seen.refused = 0
        seen.calls.append((time.monotonic(), False))
        seen.latency_ms = latency_ms if seen.latency_ms is None else seen.latency_ms * 0.7 + latency_ms * 0.3
        seen.unsaid = True
        if probe.id is not None:
            await self._end(route, probe.id, answered=True)
            log.info("breaker.closed", provider=route.provider)

    async def failed(self, route: Route, probe: Probe, failure: Failure) -> None:
        """The provider did not do its part. A wrong key opens the breaker at once, and for longer."""
        if failure.retry_after_s > 0:
            await self._rest(route, failure)
        if failure.kind not in {"retryable", "auth"}:
            if probe.id is not None:  # it says nothing of whether the provider is well
                await self._end(route, probe.id, answered=failure.kind == "rate")
            return
        seen = self._of(route)
        seen.failures += 1
        seen.calls.append((time.monotonic(), True))
        seen.last_error, seen.unsaid = failure.code, True
        opens = failure.kind == "auth" or probe.id is not None or self._too_many(seen)
        if opens and self._settings.failures and route.adapter != HERE:
            await self._open(route, seen, probe, failure)

    def abandon(self, probe: Probe) -> None:
        """Nobody knows how the probe would have ended: its time runs out, and another one follows."""
        if probe.id is not None:
            self._probes.discard(probe.id)

    async def tell(self) -> None:
        """Write what was seen since the last time, one statement for all providers; keep the probes that are under way."""
        notes = []
        for key, seen in self._seen.items():
            if seen.unsaid:
                notes.append(_note(key, seen))
                seen.unsaid, seen.last_error, seen.latency_ms = False, None, None
        if notes:
            query = "SELECT limner.note_providers(%s::text::jsonb)"
            async with self._db.system_tx(ROLE, REASON) as tx:
                await tx.execute(query, [orjson.dumps(notes).decode()])
        if self._probes:
            async with self._db.system_tx(ROLE, REASON) as tx:
                await tx.execute("SELECT limner.keep_probes(%s::uuid[], %s)", [list(self._probes), PROBE_LEASE_S])

    def _of(self, route: Route) -> _Seen:
        key = key_of(route)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen()
        return seen

    def _too_many(self, seen: _Seen) -> bool:
        if seen.failures >= self._settings.failures:
            return True
        if len(seen.calls) < LOOKED_AT or seen.calls[0][0] < time.monotonic() - WITHIN_S:
            return False
        return sum(failed for _, failed in seen.calls) >= self._settings.ratio * LOOKED_AT

    async def _probe(self, route: Route) -> Probe | Shut:
        seen = self._of(route)
        now = self._db.clock.now()
        if seen.ask_at > now:
            return _open(seen.ask_at, seen)
        probe = ids.new()
        async with self._db.system_tx(ROLE, REASON) as tx:
            row = await tx.get(
                "SELECT * FROM limner.probe_provider(%s, %s, %s, %s, %s)", [*key_of(route), probe, PROBE_LEASE_S]
            )
        if row["verdict"] == "open":
            seen.ask_at = now + max(row["wait_s"], MEANWHILE_S)
            return _open(seen.ask_at, seen)
        if row["verdict"] == "closed":
            return NO_PROBE
        self._probes.add(probe)
        return Probe(probe)

    async def _open(self, route: Route, seen: _Seen, probe: Probe, failure: Failure) -> None:
        long_s = self._settings.long_pause_s
        pause_s = long_s if failure.kind == "auth" else min(self._settings.pause_s, long_s)
        until = self._db.clock.now() + pause_s
        seen.opened = _Lately(until, until)
        seen.failures = 0
        seen.calls.clear()
        self.abandon(probe)
        row = await self._write(
            "SELECT limner.open_breaker(%s, %s, %s, %s, %s, %s, %s) AS until",
            [*key_of(route), failure.code[:100], pause_s, long_s, probe.id],
        )
        if row is not None:
            until = row["until"] or 0.0
            seen.opened = _Lately(until, self._db.clock.now() + BY_ROUTES_S)
        log.warning("breaker.opened", provider=route.provider, code=failure.code, until=moment(until))

    async def _rest(self, route: Route, failure: Failure) -> None:
        seconds = min(failure.retry_after_s, MAX_REST_S)
        seen = self._of(route)
        until = self._db.clock.now() + seconds
        seen.rests = _Lately(until, until)
        row = await self._write(
            "SELECT limner.rest_provider(%s, %s, %s, %s, %s) AS until", [*key_of(route), failure.code[:100], seconds]
        )
        if row is not None:
            seen.rests = _Lately(row["until"], self._db.clock.now() + BY_ROUTES_S)

    async def _end(self, route: Route, probe: UUID, *, answered: bool) -> None:
        self._probes.discard(probe)
        await self._write("SELECT limner.end_probe(%s, %s, %s, %s, %s)", [*key_of(route), probe, answered])

    async def _write(self, query: str, parameters: list[Any]) -> Mapping[str, Any] | None:
        """None: the database is away, and this process alone knows for now."""
        try:
            async with self._db.system_tx(ROLE, REASON) as tx:
                return await tx.get(query, parameters)
        except (*AWAY, psycopg.Error) as error:
            log.warning("health.untold", error=str(error) or type(error).__name__)
            return None


@dataclass(frozen=True, slots=True)
class Faring:
    """How a provider fares with the key of the settings, as all processes know it."""

    org_id: UUID
    provider_id: UUID
    name: str
    adapter: str
    is_enabled: bool
    state: str
    checked_at: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    latency_ms: float | None
    opened_at: datetime | None
    open_until: datetime | None
    rest_until: datetime | None


async def list_faring(tx: Tx, limit: int = 500) -> list[Faring]:
    """The organization's own providers and the platform's, by name; unknown: nobody asked it within the last hour."""
    rows = await tx.all(
        "SELECT p.org_id, p.id AS provider_id, p.name, p.adapter, p.is_enabled, CASE WHEN h.open_until IS NOT NULL"
        " OR h.checked_at > clock_timestamp() - interval '1 hour' THEN h.state ELSE 'unknown' END AS state, h.checked_at, h.last_error,"
        " h.last_error_at, h.latency_ms, h.opened_at, h.open_until,"
        " CASE WHEN h.rest_until > clock_timestamp() THEN h.rest_until END AS rest_until FROM limner.provider p"
        " LEFT JOIN limner.provider_health h ON h.org_id = p.org_id AND h.provider_id = p.id AND h.key_id = %(platform)s"
        " WHERE p.org_id IN (%(org)s, %(platform)s) ORDER BY p.name, p.org_id LIMIT %(limit)s",
        {"org": tx.org_id, "platform": PLATFORM, "limit": limit},
    )
    return [Faring(**row) for row in rows]


async def note_test(tx: Tx, provider_id: UUID, error: str | None, latency_ms: float | None) -> None:
    """What an operator's test of one of the transaction's own providers found; an answer closes its breaker."""
    note = {
        "org": tx.org_id, "provider": provider_id, "key": PLATFORM, "state": "degraded" if error else "healthy",
        "error": error, "latency_ms": latency_ms,
    }  # fmt: skip
    await tx.execute("SELECT limner.note_providers(%s::text::jsonb)", [orjson.dumps([note]).decode()])
    if error is None:
        query = "SELECT limner.end_probe(%s, %s, %s, NULL, true)"
        await tx.execute(query, [tx.org_id, provider_id, PLATFORM])


def key_of(route: Route) -> Key:
    """Whose health a call counts for."""
    return route.key_org, route.provider_id, route.key_id


def moment(epoch: float) -> str:
    """As receipts and logs carry it."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _open(until: float, seen: _Seen) -> Shut:
    """Who is refused comes again after it, one after another: a long queue is no reason to claim all of it at once."""
    seen.refused += 1
    back_at = until + min(seen.refused * APART_S, MAX_APART_S)
    return Shut("breaker_open", back_at, f"was passed over (breaker open until {moment(until)})")


def _note(key: Key, seen: _Seen) -> dict[str, Any]:
    org, provider, of_key = key
    lately = time.monotonic() - WITHIN_S
    state = "degraded" if any(failed and at > lately for at, failed in seen.calls) else "healthy"
    seen_there = {"state": state, "error": seen.last_error, "latency_ms": seen.latency_ms}
    return {"org": org, "provider": provider, "key": of_key, **seen_there}
