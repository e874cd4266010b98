"""`limner providers seed`: known providers and their models, as rows that are an operator's from then on."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json
from limner.cli.provider_probes import asked
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.egress.fixed import FixedDoor
from limner.hub import catalog, known, seed, seeding
from limner.hub.catalog import Provider
from limner.hub.known import KnownModel, KnownProvider
from limner.hub.providers.local.models import MODELS
from limner.hub.providers.openai_compatible import config as openai_config
from limner.hub.providers.openai_compatible import listing
from limner.hub.seeding import Step
from limner.tenancy import audit


def install(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Of those that are known; local without.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="TEXT", help="Of a server that lists its prices: this model, too; may be repeated."
        ),
    ] = None,
    credits_per_usd: Annotated[
        int,
        typer.Option(
            "--credits-per-usd", min=1, max=1_000_000, help="How many credits a dollar of the list price sells for."
        ),
    ] = 100,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite what is there: prices, names, addresses, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Install known providers, their models and list prices in the platform's catalog; what is there stays as it is."""
    chosen = names or [seed.PROVIDER]
    there = known.load()
    if unknown := sorted(set(chosen) - {seed.PROVIDER} - set(there)):
        printing.fail(f"unknown {', '.join(unknown)}; there are {seed.PROVIDER}, {', '.join(there)}")
    providers = [there[name] for name in chosen if name != seed.PROVIDER]
    if models:
        if len(providers) != 1:
            raise typer.BadParameter("--model goes with one provider")
        providers = [_with(providers[0], models)]

    async def work(db: Database) -> list[Step]:
        async with session.operator_tx(db, None) as tx:
            steps = []
            if seed.PROVIDER in chosen:
                steps += await _local(tx, force=force, dry=dry_run)
            steps += await seeding.install(tx, providers, credits_per_usd, overwrite=force, dry=dry_run)
            if not dry_run:
                await audit.record(tx, "providers.seeded", "provider", ",".join(chosen), session.actor(), force=force)
            return steps

    _tell(session.run(work), dry=dry_run, as_json=as_json)


async def _local(tx: Any, *, force: bool, dry: bool) -> list[Step]:
    """The built-in models, which have no list price."""
    before = {model.name for model in await catalog.list_models(tx, disabled=True) if model.org_id == tx.org_id}
    if not dry:
        await seed.install_local(tx, overwrite=force)
    return [
        Step("model", model.name, ("overwritten" if force else "kept") if model.name in before else "installed")
        for model in MODELS
    ]


async def _prices(door: FixedDoor, provider: Provider) -> dict[str, listing.Priced]:
    return await listing.list_prices(door, openai_config.read(provider.base_url, provider.config))


def _with(provider: KnownProvider, wanted: list[str]) -> KnownProvider:
    """The provider with these models of its own list, at the prices of this moment."""
    row = Provider(
        PLATFORM,
        PLATFORM,
        provider.name,
        provider.display_name,
        provider.adapter,
        provider.base_url,
        dict(provider.config),
        True,
        None,
    )
    listed = asked(row, session.settings(), _prices)
    if missing := [name for name in wanted if name not in listed]:
        printing.fail(f"{provider.name} lists no price for {', '.join(missing)[:300]}")
    today = datetime.now(UTC).date()
    source = f"{provider.base_url}/models"
    found = [
        KnownModel(
            f"{provider.name}/{name.rpartition('/')[2]}", listed[name].display_name, "text.generate", name, "tokens", listed[name].usd,
            source, today, listed[name].max_output_tokens or 4096,
        )
        for name in wanted
    ]  # fmt: skip
    names = {model.name for model in found}
    return replace(provider, models=[*(model for model in provider.models if model.name not in names), *found])


def _tell(steps: list[Step], *, dry: bool, as_json: bool) -> None:
    if as_json:
        told = [{"what": s.what, "name": s.name, "outcome": s.outcome, "price": s.price or None, "source": s.source or None,
                 "read_on": s.read_on or None, "why": s.why or None} for s in steps]  # fmt: skip
        printing.document({"dry_run": dry, "steps": told})
        return
    rows = [
        (s.what, s.name, s.outcome, s.price or None, s.read_on or None, urlsplit(s.source).netloc or s.why or None)
        for s in steps
    ]
    columns = ("what", "name", "would be" if dry else "is", "list price", "read on", "where, or why")
    printing.table(columns, rows, empty="There is nothing to install.")
    if any(step.price for step in steps) and not dry:
        printing.note(
            "list prices change without notice: limner models show NAME --json, an editor and models put change yours"
        )
