"""`limner routes`: which provider serves which model, in what order, at what cost."""

from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, OrgOrPlatform, group, read_json_object
from limner.db.pools import Database
from limner.db.tx import Row
from limner.hub import catalog
from limner.tenancy import audit

app = group("Routes: which provider serves which model, in what order.")

MAX_COST_MICRO_USD = 10**12
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model of this catalog.")]
Provider = Annotated[str, typer.Argument(metavar="PROVIDER", help="A provider of this catalog, or the platform's.")]


@app.command("list")
def list_all(org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """Every route an organization's requests may take; lower priority goes first."""

    async def work(db: Database) -> list[Row]:
        async with session.operator_tx(db, org) as tx:
            return await catalog.list_routes(tx)

    found = session.run(work)
    if as_json:
        printing.document({"routes": found})
        return
    rows = [
        (
            r["model"],
            r["provider"],
            r["provider_model"],
            r["priority"],
            r["weight"],
            f"{r['cost_micro_usd'] / 1e6:.6f}",
            r["live"],
        )
        for r in found
    ]
    columns = ("model", "provider", "there called", "priority", "weight", "cost USD", "live")
    printing.table(columns, rows, empty="There is no route here yet.")


@app.command("put")
def put(
    model: Model,
    provider: Provider,
    provider_model: Annotated[str, typer.Option("--provider-model", metavar="TEXT", help="The provider's own name.")],
    priority: Annotated[int, typer.Option("--priority", min=1, max=1000, help="Lower goes first.")] = 1,
    weight: Annotated[
        int, typer.Option("--weight", min=1, max=1000, help="Its part, where the model is routed by weight.")
    ] = 1,
    cost_micro_usd: Annotated[
        int,
        typer.Option(
            "--cost-micro-usd", min=0, max=MAX_COST_MICRO_USD, help="A unit's cost, in millionths of a dollar."
        ),
    ] = 0,
    config: Annotated[
        Any, typer.Option("--config", parser=read_json_object, metavar="JSON", help="On top of the provider's config.")
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Let a provider serve a model, or change how it does."""
    facts = {"provider_model": provider_model, "priority": priority, "weight": weight, "cost_micro_usd": cost_micro_usd}

    async def work(db: Database) -> None:
        async with session.operator_tx(db, org) as tx:
            await catalog.put_route(
                tx, model, provider, provider_model=provider_model, priority=priority, cost_micro_usd=cost_micro_usd,
                config=config, weight=weight,
            )  # fmt: skip
            await audit.record(tx, "route.put", "route", f"{model} {provider}", session.actor(), **facts)

    session.run(work)
    if as_json:
        printing.document({"model": model, "provider": provider} | facts)
    else:
        printing.say(f"{provider} serves {model} as {provider_model}, priority {priority}")


@app.command("remove")
def remove(model: Model, provider: Provider, org: OrgOrPlatform = None) -> None:
    """Take a route away; exit 1 when there was none."""

    async def work(db: Database) -> bool:
        async with session.operator_tx(db, org) as tx:
            removed = await catalog.remove_route(tx, model, provider)
            if removed:
                await audit.record(tx, "route.removed", "route", f"{model} {provider}", session.actor())
            return removed

    if not session.run(work):
        printing.fail(f"{provider} did not serve {model} here")
    printing.say(f"{provider} no longer serves {model}")
