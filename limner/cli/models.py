"""`limner models`: what is sold, at what price."""

from pathlib import Path
from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, OrgOrPlatform, group, read_credits, read_json_file, read_name
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.catalog import Model
from limner.hub.providers.openai_compatible import offers
from limner.kit import money
from limner.tenancy import audit

app = group("Models: what is sold, at what price.")

REQUIRED = ("name", "display_name", "kind", "price", "input_schema")
TEXTS = ("name", "display_name", "kind", "family", "description")
OPTIONAL = ("family", "description", "capabilities", "price_unit", "expected_s", "deadline_s")
MAX_DEADLINE_S = 604_800
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name, e.g. local/canvas.")]


def shape(model: Model) -> dict[str, Any]:
    """For machines: what `models put` takes, and where the row belongs."""
    return {
        "name": model.name, "display_name": model.display_name, "family": model.family,
        "description": model.description, "kind": model.kind, "capabilities": model.capabilities,
        "price": printing.exact(model.price_mc), "price_unit": model.price_unit, "expected_s": model.expected_s,
        "deadline_s": model.deadline_s, "input_schema": model.input_schema, "enabled": model.is_enabled,
        "platform": model.org_id == PLATFORM,
    }  # fmt: skip


def read_model(path: Path) -> dict[str, Any]:
    """The facts of `catalog.put_model` from a file. Raises typer.BadParameter with the field that is wrong."""
    given = read_json_file(path)
    check_fields(path, given, REQUIRED, OPTIONAL)
    for name in TEXTS:
        if not isinstance(given.get(name, ""), str) or "\0" in given.get(name, ""):
            raise typer.BadParameter(f"{path}: {name} must be text")
    for name in ("input_schema", "capabilities"):
        if not isinstance(given.get(name, {}), dict):
            raise typer.BadParameter(f"{path}: {name} must be an object")
    if given.get("price_unit", "output") not in {"output", "job"}:
        raise typer.BadParameter(f'{path}: price_unit must be "output" or "job"')
    expected, deadline = given.get("expected_s", 5.0), given.get("deadline_s", 86_400)
    if not _number(expected) or not 0 < expected <= MAX_DEADLINE_S:
        raise typer.BadParameter(f"{path}: expected_s must be a number of seconds above 0")
    if not _number(deadline) or deadline != int(deadline) or not 1 <= deadline <= MAX_DEADLINE_S:
        raise typer.BadParameter(f"{path}: deadline_s must be whole seconds from 1 to {MAX_DEADLINE_S}")
    if isinstance(given["price"], bool):
        raise typer.BadParameter(f"{path}: price must be credits")
    try:
        price_mc = read_credits(str(given.pop("price")))
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{path}: price: {error.message}") from None
    return given | {"price_mc": price_mc}


SHOWN = ("enabled", "platform", "routes")
"""What listings say beyond the facts themselves: a file that `show --json` wrote may carry them."""


def check_fields(path: Path, given: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Raises typer.BadParameter for what is missing and what nobody knows; what `show` adds is taken out."""
    for name in SHOWN:
        given.pop(name, None)
    missing = [name for name in required if name not in given]
    unknown = [name for name in given if name not in required + optional]
    if missing:
        raise typer.BadParameter(f"{path}: missing {', '.join(missing)}")
    if unknown:
        raise typer.BadParameter(f"{path}: unknown {', '.join(unknown)}; there are {', '.join(required + optional)}")


@app.command("list")
def list_all(org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """Every model an organization may use, its own before the platform's; disabled ones are marked."""

    async def work(db: Database) -> list[Model]:
        async with session.operator_tx(db, org) as tx:
            return await catalog.list_models(tx, disabled=True)

    found = session.run(work)
    if as_json:
        printing.document({"models": [shape(model) for model in found]})
        return
    rows = [
        (m.name, m.kind, printing.grouped(m.price_mc), m.price_unit, m.is_enabled,
         "platform" if m.org_id == PLATFORM else "own", m.display_name)
        for m in found
    ]  # fmt: skip
    printing.table(
        ("name", "kind", "price", "a", "enabled", "whose", "called"), rows, empty="Nothing is sold here yet."
    )


@app.command("show")
def show(name: Name, org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """One model with its input schema and its routes."""

    async def work(db: Database) -> tuple[Model, list[catalog.Route]]:
        async with session.operator_tx(db, org) as tx:
            model = await catalog.find_model(tx, name, disabled=True)
            if model is None:
                raise catalog.ModelNotFound(f"there is no model {name}")
            return model, await catalog.routes_of(tx, model.id)

    model, routes = session.run(work)
    if as_json:
        served = [
            {"provider": r.provider, "provider_model": r.provider_model, "priority": r.priority,
             "cost_micro_usd": r.cost_micro_usd}
            for r in routes
        ]  # fmt: skip
        printing.document(shape(model) | {"routes": served})
        return
    printing.facts([
        ("model", model.name), ("called", model.display_name), ("description", model.description or None),
        ("kind", model.kind), ("price", _price(model)),
        ("enabled", model.is_enabled), ("whose", "platform" if model.org_id == PLATFORM else "own"),
        ("expected", f"{model.expected_s:g} s"), ("deadline", f"{model.deadline_s} s"),
        ("takes", ", ".join(_fields(model.input_schema)) or None),
        ("routes", ", ".join(f"{r.provider} ({r.provider_model})" for r in routes) or None),
    ])  # fmt: skip


@app.command("put")
def put(
    file: Annotated[Path, typer.Argument(help="JSON, in the shape models show --json prints.")],
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Create a model, or bring the one of this name to what the file says."""
    facts = read_model(file)

    async def work(db: Database) -> Model:
        async with session.operator_tx(db, org) as tx:
            model_id = await catalog.put_model(tx, facts)
            model = await catalog.find_model(tx, facts["name"], disabled=True)
            assert model is not None
            await audit.record(
                tx, "model.put", "model", model_id, session.actor(), name=model.name, price_mc=model.price_mc
            )
            return model

    model = session.run(work)
    if as_json:
        printing.document(shape(model))
    else:
        printing.say(f"model {model.name}: {_price(model)}")


@app.command("add")
def add(
    name: Name,
    kind: Annotated[offers.Kind, typer.Option("--kind", help="What it does: decides what it takes.")],
    provider: Annotated[str, typer.Option("--provider", metavar="NAME", help="Who runs it; limner providers add.")],
    provider_model: Annotated[str, typer.Option("--provider-model", metavar="TEXT", help="The provider's own name.")],
    price_mc: Annotated[int, typer.Option("--price", parser=read_credits, metavar="CREDITS", help="For each output.")],
    called: Annotated[
        str | None,
        typer.Option("--called", parser=read_name, metavar="TEXT", help="How people see it; its name otherwise."),
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Sell a model of a server that speaks OpenAI's interface: the model, what it takes, and the route to it."""
    facts = {
        "name": name, "display_name": called or name, "kind": kind, "family": provider, "price_mc": price_mc,
        "input_schema": offers.SCHEMAS[kind], "capabilities": offers.capabilities(kind), "expected_s": offers.EXPECTED_S[kind],
    }  # fmt: skip

    async def work(db: Database) -> Model:
        async with session.operator_tx(db, org) as tx:
            there = await catalog.find_model(tx, name, disabled=True)
            if there is not None and there.org_id == tx.org_id:
                raise catalog.NameTaken(f"there is a model {name} already; limner models put changes it")
            model_id = await catalog.put_model(tx, facts)
            await catalog.put_route(tx, name, provider, provider_model=provider_model)
            await audit.record(tx, "model.put", "model", model_id, session.actor(), name=name, price_mc=price_mc)
            await audit.record(
                tx, "route.put", "route", f"{name} {provider}", session.actor(), provider_model=provider_model
            )
            model = await catalog.find_model(tx, name)
            assert model is not None
            return model

    model = session.run(work)
    if as_json:
        printing.document(shape(model))
    else:
        printing.say(f"model {model.name}: {_price(model)}, by {provider} as {provider_model}")


@app.command("enable")
def enable(name: Name, org: OrgOrPlatform = None) -> None:
    """Sell a model again, within ten seconds."""
    _enable(name, org, enabled=True)


@app.command("disable")
def disable(name: Name, org: OrgOrPlatform = None) -> None:
    """Stop selling a model, within ten seconds; jobs already accepted are finished."""
    _enable(name, org, enabled=False)


def _enable(name: str, org: str | None, *, enabled: bool) -> None:
    async def work(db: Database) -> None:
        async with session.operator_tx(db, org) as tx:
            await catalog.enable_model(tx, name, enabled=enabled)
            await audit.record(tx, "model.changed", "model", name, session.actor(), is_enabled=enabled)

    session.run(work)
    printing.say(f"model {name} is {'enabled' if enabled else 'disabled'}")


def _price(model: Model) -> str:
    amount = "1 credit" if model.price_mc == money.MC else f"{printing.grouped(model.price_mc)} credits"
    return f"{amount} {'an output' if model.price_unit == 'output' else 'a job'}"


def _fields(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    return [name if name in required else f"[{name}]" for name in schema.get("properties", {})]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
