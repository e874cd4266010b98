"""`limner providers check` and `test`: what servers say of themselves, asked as workers with these settings would ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, OrgOrPlatform
from limner.db.pools import Database
from limner.db.tx import Row
from limner.egress import doors
from limner.egress.fixed import FixedDoor
from limner.hub import catalog, health
from limner.hub.catalog import Provider
from limner.hub.providers import configuration, registry
from limner.hub.providers.base import ConfigInvalid, ProviderError
from limner.settings import Settings
from limner.tenancy import audit

HINTS = {
    "provider_not_allowed": "name its host in LIMNER_EGRESS_HOSTS, or its origin in LIMNER_EGRESS_PLAIN_ORIGINS",
    "provider_auth": "its key belongs into LIMNER_PROVIDER_KEYS, under its origin",
    "provider_misconfigured": "most addresses end in /v1",
}
AT_ONCE = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking one provider. `ok` None: its kind has nothing to be asked. `error`: the code, where it does not answer."""

    provider: str
    adapter: str
    address: str
    ok: bool | None
    error: str | None
    found: str
    took_ms: int | None


def probe(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One provider; all of the catalog without it.")
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Ask each provider whether it answers, takes the key and has the models that its routes name. An answer closes its breaker."""

    async def read(db: Database) -> tuple[list[Provider], list[Row]]:
        async with session.operator_tx(db, org) as tx:
            return await catalog.list_providers(tx), await catalog.list_routes(tx)

    providers, routes = session.run(read)
    chosen = [provider for provider in providers if name in {None, provider.name}]
    if not chosen:
        printing.fail(f"there is no provider {name} here" if name else "there is no provider here yet")
    probes = asyncio.run(_ask_all(chosen, routes, session.settings()))

    async def note(db: Database) -> None:
        async with session.operator_tx(db, org) as tx:
            for provider, one in zip(chosen, probes, strict=True):
                if one.ok is not None and provider.org_id == tx.org_id:
                    await health.note_test(tx, provider.id, one.error, one.took_ms)
            words = {one.provider: one.error or "ok" for one in probes}
            await audit.record(tx, "provider.tested", "provider", name or "all", session.actor(), **words)

    session.run(note)
    if as_json:
        printing.document({"providers": [asdict(one) for one in probes]})
    else:
        rows = [
            (p.provider, p.adapter, p.address, {True: "yes", False: "NO", None: "-"}[p.ok], p.took_ms, p.found)
            for p in probes
        ]
        printing.table(("provider", "adapter", "address", "answers", "ms", "found"), rows, empty="")
    if any(probe.ok is False for probe in probes):
        raise typer.Exit(1)


async def _ask_all(providers: Sequence[Provider], routes: Sequence[Row], config: Settings) -> list[Probe]:
    door, turn = doors.fixed(config), asyncio.Semaphore(AT_ONCE)
    try:
        return list(await asyncio.gather(*(_ask(door, turn, provider, routes) for provider in providers)))
    finally:
        await door.aclose()


async def _ask(door: FixedDoor, turn: asyncio.Semaphore, provider: Provider, routes: Sequence[Row]) -> Probe:
    async with turn:
        began = time.monotonic()
        ok, error, found = await _answer(door, provider, routes)
        took_ms = None if ok is None else round((time.monotonic() - began) * 1000)
    address = configuration.address(provider.adapter, provider.base_url)
    return Probe(provider.name, provider.adapter, address or "", ok, error, found, took_ms)


async def _answer(door: FixedDoor, provider: Provider, routes: Sequence[Row]) -> tuple[bool | None, str | None, str]:
    kind = registry.all_kinds().get(provider.adapter)
    if kind is None:
        return False, "no_adapter", f"this release has no adapter {provider.adapter}"
    if kind.list_models is None:
        words = "has no list of models to ask for"
        far = kind.default_base_url or provider.base_url
        return None, None, words if far else "works in this program's own processes"
    try:
        models = set(await models_of(door, provider))
    except (ProviderError, ConfigInvalid) as error:
        return False, getattr(error, "code", "provider_misconfigured"), _hinted(error)
    routed = {row["provider_model"] for row in routes if row["provider"] == provider.name and row["live"]}
    missing = ", ".join(sorted(routed - models))[:200]
    return not missing, None, f"{len(models)} models{f', but not {missing}' if missing else ''}"


def _hinted(error: ProviderError | ConfigInvalid) -> str:
    """In words; a configuration that cannot work may be a row from before this release."""
    if isinstance(error, ConfigInvalid):
        return str(error)
    hint = HINTS.get(error.code)
    return error.message + (f" Hint: {hint}." if hint else "")


async def models_of(door: FixedDoor, provider: Provider) -> list[str]:
    """What a server has, where its kind can be asked. Raises ProviderError, ConfigInvalid."""
    kind = registry.all_kinds()[provider.adapter]
    assert kind.list_models is not None
    return await kind.list_models(door, configuration.address(provider.adapter, provider.base_url), provider.config)


def asked(provider: Provider, config: Settings, ask: Callable[[FixedDoor, Provider], Awaitable[T]]) -> T:
    """What a server answers to this. Ends the command with words where it answers nothing of use."""

    async def work() -> T:
        door = doors.fixed(config)
        try:
            return await ask(door, provider)
        finally:
            await door.aclose()

    kind = registry.all_kinds().get(provider.adapter)
    if kind is None or kind.list_models is None:
        printing.fail(f"provider {provider.name} works by the adapter {provider.adapter}: there is nothing to ask")
    try:
        return asyncio.run(work())
    except (ProviderError, ConfigInvalid) as error:
        printing.fail(f"{provider.name}: {_hinted(error)}")
