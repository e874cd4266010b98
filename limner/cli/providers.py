"""`limner providers`: who runs the models."""

from pathlib import Path
from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import MAX_BOUND, NO_BOUND, Json, OrgOrPlatform, group, read_bound, read_json_file
from limner.cli.models import check_fields
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import catalog, seed
from limner.hub.catalog import Provider
from limner.tenancy import audit

app = group("Providers: who runs the models.")

REQUIRED = ("name", "display_name", "adapter")
OPTIONAL = ("base_url", "key_env", "config", "max_running")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The provider's name.")]


def shape(provider: Provider) -> dict[str, Any]:
    """For machines: what `providers put` takes, and where the row belongs."""
    return {
        "name": provider.name, "display_name": provider.display_name, "adapter": provider.adapter,
        "base_url": provider.base_url, "key_env": provider.key_env, "config": provider.config,
        "max_running": provider.max_running, "enabled": provider.is_enabled, "platform": provider.org_id == PLATFORM,
    }  # fmt: skip


def read_provider(path: Path) -> dict[str, Any]:
    """The facts of `catalog.put_provider` from a file. Raises typer.BadParameter with the field that is wrong."""
    given = read_json_file(path)
    check_fields(path, given, REQUIRED, OPTIONAL)
    for name in ("name", "display_name", "adapter"):
        if not isinstance(given[name], str) or not given[name]:
            raise typer.BadParameter(f"{path}: {name} must be text")
    for name in ("base_url", "key_env"):
        if not isinstance(given.get(name), str | None):
            raise typer.BadParameter(f"{path}: {name} must be text or null")
    if not isinstance(given.get("config", {}), dict):
        raise typer.BadParameter(f"{path}: config must be an object")
    cap = given.get("max_running")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or not 1 <= cap <= MAX_BOUND):
        raise typer.BadParameter(f"{path}: max_running must be a whole number from 1 to {MAX_BOUND:,}, or null")
    return given


@app.command("list")
def list_all(org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """An organization's own providers and the platform's, by name."""

    async def work(db: Database) -> list[Provider]:
        async with session.operator_tx(db, org) as tx:
            return await catalog.list_providers(tx)

    found = session.run(work)
    if as_json:
        printing.document({"providers": [shape(provider) for provider in found]})
        return
    rows = [
        (p.name, p.adapter, p.base_url, p.key_env, p.max_running, p.is_enabled, "platform" if p.org_id == PLATFORM else "own",
         p.display_name)
        for p in found
    ]  # fmt: skip
    columns = ("name", "adapter", "address", "key from", "most", "enabled", "whose", "called")
    printing.table(columns, rows, empty="There is no provider here yet.")


@app.command("put")
def put(
    file: Annotated[Path, typer.Argument(help="JSON, in the shape providers list --json prints for one.")],
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Create a provider, or bring the one of this name to what the file says."""
    facts = read_provider(file)

    async def work(db: Database) -> Provider:
        async with session.operator_tx(db, org) as tx:
            provider_id = await catalog.put_provider(tx, facts)
            await audit.record(tx, "provider.put", "provider", provider_id, session.actor(), name=facts["name"])
            return next(p for p in await catalog.list_providers(tx) if p.id == provider_id)

    provider = session.run(work)
    if as_json:
        printing.document(shape(provider))
    else:
        printing.say(f"provider {provider.name} works by the adapter {provider.adapter}")


@app.command("seed")
def install(as_json: Json = False) -> None:
    """Install the local provider and its models in the platform's catalog, or bring them up to date."""

    async def work(db: Database) -> int:
        async with session.operator_tx(db, None) as tx:
            return await seed.install_local(tx, overwrite=True)

    count = session.run(work)
    if as_json:
        printing.document({"provider": seed.PROVIDER, "models": count})
    else:
        printing.say(f"provider {seed.PROVIDER} serves {count} models")


@app.command("set")
def change(
    name: Name,
    max_running: Annotated[
        int,
        typer.Option("--max-running", parser=read_bound, metavar="N|none", help="At most so many jobs at it at once."),
    ],
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """How many jobs may be at a provider at once, over all workers and organizations."""
    cap = None if max_running == NO_BOUND else max_running

    async def work(db: Database) -> Provider:
        async with session.operator_tx(db, org) as tx:
            await catalog.cap_provider(tx, name, cap)
            await audit.record(tx, "provider.changed", "provider", name, session.actor(), max_running=cap)
            return next(p for p in await catalog.list_providers(tx) if p.name == name and p.org_id == tx.org_id)

    provider = session.run(work)
    if as_json:
        printing.document(shape(provider))
    else:
        printing.say(f"provider {name} has {f'at most {cap} jobs' if cap else 'any number of jobs'} at once")


@app.command("enable")
def enable(name: Name, org: OrgOrPlatform = None) -> None:
    """Send work to a provider again."""
    _enable(name, org, enabled=True)


@app.command("disable")
def disable(name: Name, org: OrgOrPlatform = None) -> None:
    """Send no new work to a provider."""
    _enable(name, org, enabled=False)


def _enable(name: str, org: str | None, *, enabled: bool) -> None:
    async def work(db: Database) -> None:
        async with session.operator_tx(db, org) as tx:
            await catalog.enable_provider(tx, name, enabled=enabled)
            await audit.record(tx, "provider.changed", "provider", name, session.actor(), is_enabled=enabled)

    session.run(work)
    printing.say(f"provider {name} is {'enabled' if enabled else 'disabled'}")
