"""`limner providers check` and `test`: what servers say of themselves, asked as workers with these settings would ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, OrgOrPlatform
from limner.db.pools import Database
from limner.db.tx import Row
from limner.egress import doors
from limner.egress.fixed import FixedDoor
from limner.hub import catalog
from limner.hub.catalog import Provider
from limner.hub.providers import configuration
from limner.hub.providers.base import ConfigInvalid, ProviderError
from limner.hub.providers.openai_compatible import config as openai_config
from limner.hub.providers.openai_compatible import listing
from limner.settings import Settings

HINTS = {
    "provider_not_allowed": "name its host in LIMNER_EGRESS_HOSTS, or its origin in LIMNER_EGRESS_PLAIN_ORIGINS",
    "provider_auth": "its key belongs into LIMNER_PROVIDER_KEYS, under its origin",
    "provider_misconfigured": "most addresses end in /v1",
}
UNASKED: dict[str, tuple[bool | None, str]] = {"local": (None, "works in this program's own processes")}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking one provider. `ok` None: its kind has nothing to be asked."""

    provider: str
    adapter: str
    address: str
    ok: bool | None
    found: str
    took_ms: int | None


def probe(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One provider; all of the catalog without it.")
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Ask each provider whether it answers, takes the key and has the models that its routes name."""

    async def read(db: Database) -> tuple[list[Provider], list[Row]]:
        async with session.operator_tx(db, org) as tx:
            return await catalog.list_providers(tx), await catalog.list_routes(tx)

    providers, routes = session.run(read)
    chosen = [provider for provider in providers if name in {None, provider.name}]
    if not chosen:
        printing.fail(f"there is no provider {name} here" if name else "there is no provider here yet")
    probes = asyncio.run(_ask_all(chosen, routes, session.settings()))
    if as_json:
        told = [
            {
                "provider": p.provider,
                "adapter": p.adapter,
                "address": p.address,
                "ok": p.ok,
                "found": p.found,
                "took_ms": p.took_ms,
            }
            for p in probes
        ]
        printing.document({"providers": told})
    else:
        rows = [
            (p.provider, p.adapter, p.address, {True: "yes", False: "NO", None: "-"}[p.ok], p.took_ms, p.found)
            for p in probes
        ]
        printing.table(("provider", "adapter", "address", "answers", "ms", "found"), rows, empty="")
    if any(probe.ok is False for probe in probes):
        raise typer.Exit(1)


async def _ask_all(providers: Sequence[Provider], routes: Sequence[Row], config: Settings) -> list[Probe]:
    door = doors.fixed(config)
    try:
        return list(await asyncio.gather(*(_ask(door, provider, routes) for provider in providers)))
    finally:
        await door.aclose()


async def _ask(door: FixedDoor, provider: Provider, routes: Sequence[Row]) -> Probe:
    began = time.monotonic()
    ok, found = await _answer(door, provider, routes)
    took_ms = round((time.monotonic() - began) * 1000) if provider.adapter == "openai" else None
    return Probe(provider.name, provider.adapter, provider.base_url or "", ok, found, took_ms)


async def _answer(door: FixedDoor, provider: Provider, routes: Sequence[Row]) -> tuple[bool | None, str]:
    if provider.adapter in UNASKED or provider.adapter not in configuration.ADAPTERS:
        unknown = (False, f"this release has no adapter {provider.adapter}")
        return UNASKED.get(provider.adapter, unknown)
    if provider.adapter != "openai":
        return None, "has no list of models to ask for"
    try:
        models = set(await listing.list_models(door, openai_config.read(provider.base_url, provider.config)))
    except (ProviderError, ConfigInvalid) as error:
        return False, _hinted(error)
    routed = {row["provider_model"] for row in routes if row["provider"] == provider.name and row["live"]}
    missing = ", ".join(sorted(routed - models))[:200]
    return not missing, f"{len(models)} models{f', but not {missing}' if missing else ''}"


def _hinted(error: ProviderError | ConfigInvalid) -> str:
    """In words; a configuration that cannot work may be a row from before this release."""
    if isinstance(error, ConfigInvalid):
        return str(error)
    hint = HINTS.get(error.code)
    return error.message + (f" Hint: {hint}." if hint else "")


def asked(provider: Provider, config: Settings, ask: Callable[[FixedDoor, Any], Awaitable[T]]) -> T:
    """What a server that speaks OpenAI's interface answers to this. Ends the command with words where it answers nothing of use."""

    async def work() -> T:
        door = doors.fixed(config)
        try:
            return await ask(door, openai_config.read(provider.base_url, provider.config))
        finally:
            await door.aclose()

    if provider.adapter != "openai":
        printing.fail(f"provider {provider.name} works by the adapter {provider.adapter}: there is nothing to ask")
    try:
        return asyncio.run(work())
    except (ProviderError, ConfigInvalid) as error:
        printing.fail(f"{provider.name}: {_hinted(error)}")
