"""`limner providers health` and `limner providers test`: how providers fare, and whether they answer at all."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, OrgOrPlatform
from limner.cli.providers import HINTS, app, models_of
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import catalog, health
from limner.hub.catalog import Provider
from limner.hub.health import Faring
from limner.hub.providers.base import ConfigInvalid, ProviderError
from limner.settings import Settings
from limner.tenancy import audit

AT_ONCE = 8
OptionalName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="The provider's name; without it all of them.")
]


@dataclass(frozen=True, slots=True)
class Tested:
    """What one provider answered; `error` None: all is well, or there is nothing to ask."""

    provider: Provider
    says: str
    error: str | None
    latency_ms: float | None


@app.command("health")
def show_health(org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """How each provider fares, as all processes know it: its state, its breaker, its last error."""

    async def work(db: Database) -> list[Faring]:
        async with session.operator_tx(db, org) as tx:
            return await health.list_faring(tx)

    found = session.run(work)
    if as_json:
        printing.document({"providers": [_shape(faring) for faring in found]})
        return
    rows = [
        (f.name, "platform" if f.org_id == PLATFORM else "own", f.state.upper(), _standing(f), _ms(f.latency_ms), f.checked_at,
         f.last_error, f.last_error_at)
        for f in found
    ]  # fmt: skip
    columns = ("name", "whose", "state", "is asked", "latency", "last seen", "last error", "at")
    printing.table(columns, rows, empty="There is no provider here yet.")


@app.command("test")
def ask_each(name: OptionalName = None, org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """Ask each provider whether it answers, as workers with these settings would. An answer closes its breaker."""

    async def work(db: Database) -> list[Tested]:
        async with session.operator_tx(db, org) as tx:
            found = [p for p in await catalog.list_providers(tx) if name in (None, p.name) and p.org_id == tx.org_id]
        if name is not None and not found:
            raise catalog.ProviderNotFound(f"there is no provider {name} here")
        turn = asyncio.Semaphore(AT_ONCE)
        tested = await asyncio.gather(*(_test(provider, session.settings(), turn) for provider in found))
        async with session.operator_tx(db, org) as tx:
            for one in tested:
                await health.note_test(tx, one.provider.id, one.error, one.latency_ms)
            words = {one.provider.name: one.error or "ok" for one in tested}
            await audit.record(tx, "provider.tested", "provider", name or "all", session.actor(), **words)
        return tested

    tested = session.run(work)
    if as_json:
        printing.document({"providers": [_told(one) for one in tested]})
    else:
        rows = [(t.provider.name, t.provider.adapter, t.error is None, _ms(t.latency_ms), t.says) for t in tested]
        printing.table(("name", "adapter", "ok", "took", "says"), rows, empty="There is no provider here yet.")
    failed = [one.provider.name for one in tested if one.error is not None]
    if failed:
        printing.fail(f"{', '.join(failed)} cannot be used")


async def _test(provider: Provider, config: Settings, turn: asyncio.Semaphore) -> Tested:
    if provider.adapter != "openai":
        local = provider.adapter == health.HERE
        return Tested(provider, "works on this machine" if local else "nothing to ask without a price", None, None)
    async with turn:
        began = time.monotonic()
        try:
            models = await models_of(provider, config)
        except ProviderError as error:
            hint = HINTS.get(error.code)
            return Tested(provider, error.message + (f" Hint: {hint}." if hint else ""), error.code, None)
        except ConfigInvalid as error:  # a row from before this release
            return Tested(provider, str(error), "provider_misconfigured", None)
        took_ms = (time.monotonic() - began) * 1000
        return Tested(provider, f"{len(models)} models", None, took_ms)


def _standing(faring: Faring) -> str:
    """Whether jobs and calls come to it now."""
    if not faring.is_enabled:
        return "no, disabled"
    if faring.open_until is not None:
        return f"no, breaker open until {printing.when(faring.open_until)}, then one at a time"
    return f"no, rests until {printing.when(faring.rest_until)}" if faring.rest_until is not None else "yes"


def _ms(latency_ms: float | None) -> str | None:
    return None if latency_ms is None else f"{latency_ms:.0f} ms"


def _shape(faring: Faring) -> dict[str, Any]:
    fields: Sequence[str] = (
        "name", "adapter", "state", "checked_at", "last_error", "last_error_at", "latency_ms", "opened_at", "open_until", "rest_until",
    )  # fmt: skip
    told = {name: getattr(faring, name) for name in fields}
    return told | {"enabled": faring.is_enabled, "platform": faring.org_id == PLATFORM}


def _told(one: Tested) -> dict[str, Any]:
    found = {"ok": one.error is None, "error": one.error, "says": one.says, "latency_ms": one.latency_ms}
    return {"name": one.provider.name, **found}
