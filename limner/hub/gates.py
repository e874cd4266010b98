"""What stands before each call of a provider: is it well (hub.health), and does it take another one now (hub.permits)?

Providers that are well and have no limits cost no statement and no wait.
"""

import asyncio
import time
from types import TracebackType
from typing import Self

import psycopg

from limner.db.pools import AWAY, Database
from limner.hub.catalog import Route
from limner.hub.endings import MESSAGES, Failure
from limner.hub.health import NO_PROBE, BreakerSettings, Health, Probe, Shut
from limner.hub.permits import Permit, Permits, TooManyTokens
from limner.settings import Settings
from limner.telemetry import logs

TELL_EVERY_S = 1.0
log = logs.get("gates")


class Passage:
    """Leave to ask one provider once. Leaving the block unasked gives back what was taken; `sent` and one of the ends use it up."""

    def __init__(self, gates: "Gates", route: Route, tokens: int, probe: Probe, permit: Permit | None) -> None:
        self._gates = gates
        self._route = route
        self._tokens = tokens
        self._probe = probe
        self._permit = permit
        self._is_sent = False
        self._is_over = False
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()

    def leave(self) -> None:
        """Nothing more is known of the call. Harmless where it has ended."""
        if self._is_over:
            return
        self._is_over = True
        self._gates.health.abandon(self._probe)
        if self._permit is not None and not self._is_sent:
            self._gates.permits.give_back(self._permit, 1, self._permit.tokens)

    def begin(self) -> bool:
        """Right before the call begins. False: its permit has become too old, so that `send` is needed."""
        if self._permit is not None and self._permit.until <= time.monotonic():
            return False
        self._start()
        return True

    async def send(self) -> Failure | None:
        """As `begin`; a permit that has become too old is changed for another one, or there is none. Harmless where it has begun."""
        if self._is_sent or self.begin():
            return None
        assert self._permit is not None
        self._gates.permits.give_back(self._permit, 1, self._permit.tokens)
        self._permit = None
        fresh = await self._gates.take(self._route, self._tokens)
        if isinstance(fresh, Failure):
            return fresh
        self._permit = fresh
        self._start()
        return None

    def _start(self) -> None:
        self._is_sent = True
        self._began = time.monotonic()

    async def end(self, failure: Failure | None = None, tokens: int | None = None) -> None:
        """How the call ended; `tokens`: what it really used, as far as that is known."""
        if self._is_over or not self._is_sent:
            return
        self._is_over = True
        if self._permit is not None and tokens is not None:
            self._gates.permits.give_back(self._permit, 0, self._permit.tokens - tokens)
        if failure is None or failure.stops or failure.kind in {"content", "bad_request"}:
            latency_ms = (time.monotonic() - self._began) * 1000
            await self._gates.health.answered(self._route, self._probe, latency_ms)
        else:
            await self._gates.health.failed(self._route, self._probe, failure)


class Gates:
    """One for each process."""

    def __init__(self, db: Database, breaker: BreakerSettings) -> None:
        self._clock = db.clock
        self.health = Health(db, breaker)
        self.permits = Permits(db)

    async def enter(self, route: Route, tokens: int, *, free: bool = False) -> Passage | Failure:
        """Leave to ask the provider, or why it is passed over. `free`: nothing new is asked of it."""
        if free:
            return Passage(self, route, 0, NO_PROBE, None)
        probe = await self.health.look(route)
        if isinstance(probe, Shut):
            return _failure(probe, probe.until - self._clock.now())
        try:
            permit = await self.take(route, tokens)
        except BaseException:
            self.health.abandon(probe)
            raise
        if isinstance(permit, Failure):
            self.health.abandon(probe)
            return permit
        return Passage(self, route, tokens, probe, permit)

    async def take(self, route: Route, tokens: int) -> Permit | Failure | None:
        """A permit, or why there is none; None where none is needed."""
        try:
            permit = await self.permits.take(route, tokens)
        except TooManyTokens:
            return Failure("provider_tokens_too_few", MESSAGES["provider_tokens_too_few"], "fatal")
        return _failure(permit, permit.until - self._clock.now()) if isinstance(permit, Shut) else permit

    async def keep(self) -> None:
        """Tell the other processes what was seen, and give back permits, until cancelled."""
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            for tell in (self.health.tell, self.permits.tell):
                try:
                    await tell()
                except (*AWAY, psycopg.Error) as error:
                    log.warning("gates.untold", error=str(error) or type(error).__name__)


def breaker(settings: Settings) -> BreakerSettings:
    """As the settings say."""
    return BreakerSettings(
        settings.breaker_failures, settings.breaker_ratio, settings.breaker_pause_s, settings.breaker_long_pause_s
    )


def _failure(shut: Shut, wait_s: float) -> Failure:
    return Failure(shut.code, MESSAGES[shut.code], "rate", retry_after_s=max(wait_s, 0.0), full=True, passed=shut.words)
