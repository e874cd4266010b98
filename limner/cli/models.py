"""`limner models`: what is sold, at what price."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, OrgOrPlatform, group, read_credits, read_json_file, read_name
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.catalog import Model, Routing
from limner.hub.pricing import BY_TIME, OnDisconnect
from limner.hub.providers import texts
from limner.hub.providers.base import ErrorKind
from limner.hub.providers.openai_compatible import offers
from limner.kit import money
from limner.tenancy import audit

app = group("Models: what is sold, at what price.")

REQUIRED = ("name", "display_name", "kind", "price", "input_schema")
TEXTS = ("name", "display_name", "kind", "family", "description", "price_source")
BY_TOKENS = ("input_price", "cached_price", "output_price")
"""Credits for a million tokens."""
OPTIONAL = (
    "family", "description", "capabilities", "price_unit", *BY_TOKENS, "price_source", "priced_on", "max_output_tokens",
    "on_disconnect", "expected_s", "deadline_s", "routing", "next_on",
)  # fmt: skip
UNITS = {"output": "an output", "job": "a job", "tokens": "a call", "second": "a second", "minute": "a minute"}
Per = Literal["output", "job", "second", "minute"]
MAX_DEADLINE_S = 604_800
MAX_OUTPUT_TOKENS = 10_000_000
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name, e.g. local/canvas.")]
Price = Annotated[
    int | None,
    typer.Option("--price", parser=read_credits, metavar="CREDITS", help="For each output; by tokens, for each call."),
]
InputPrice = Annotated[
    int | None,
    typer.Option("--input-price", parser=read_credits, metavar="CREDITS", help="For a million tokens read."),
]
CachedPrice = Annotated[
    int | None,
    typer.Option("--cached-price", parser=read_credits, metavar="CREDITS", help="Of them from a cache; else as read."),
]
OutputPrice = Annotated[
    int | None,
    typer.Option("--output-price", parser=read_credits, metavar="CREDITS", help="For a million tokens written."),
]
PriceSource = Annotated[str, typer.Option("--price-source", metavar="TEXT", help="Where the prices were read.")]
Longest = Annotated[
    int, typer.Option("--max-output-tokens", min=1, max=MAX_OUTPUT_TOKENS, help="The longest answer it gives.")
]
Disconnect = Annotated[
    OnDisconnect,
    typer.Option("--on-disconnect", help="When nobody listens any more: end it, read it to its end, or estimate."),
]


def read_kinds(text: str) -> list[str]:
    """Classes of errors, by comma; "none" for no class at all. Raises typer.BadParameter."""
    given = [] if text in ("none", "") else text.split(",")
    unknown = [kind for kind in given if kind not in get_args(ErrorKind)]
    if unknown:
        raise typer.BadParameter(
            f"no class of errors: {', '.join(unknown)}; there are {', '.join(get_args(ErrorKind))}"
        )
    return list(dict.fromkeys(given))


def shape(model: Model) -> dict[str, Any]:
    """For machines: what `models put` takes, and where the row belongs."""
    return {
        "name": model.name, "display_name": model.display_name, "family": model.family,
        "description": model.description, "kind": model.kind, "capabilities": model.capabilities,
        "price": printing.exact(model.price_mc), "price_unit": model.price_unit, **_by_tokens(model),
        "expected_s": model.expected_s,
        "deadline_s": model.deadline_s, "routing": model.routing, "next_on": list(model.next_on),
        "input_schema": model.input_schema, "enabled": model.is_enabled,
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
    if given.get("price_unit", "output") not in UNITS:
        raise typer.BadParameter(f'{path}: price_unit must be "output", "job", "tokens", "second" or "minute"')
    if given.get("on_disconnect", "drain") not in get_args(OnDisconnect):
        raise typer.BadParameter(f'{path}: on_disconnect must be "abort", "drain" or "estimate"')
    if given.get("routing", "priority") not in get_args(Routing):
        raise typer.BadParameter(f"{path}: routing must be one of {', '.join(get_args(Routing))}")
    if "next_on" in given:
        given["next_on"] = read_kinds(
            ",".join(map(str, given["next_on"] if isinstance(given["next_on"], list) else [None]))
        )
    _check_unit(str(path), given.get("price_unit", "output"), given["kind"])
    longest = given.get("max_output_tokens", 1)
    if not _number(longest) or longest != int(longest) or not 1 <= longest <= MAX_OUTPUT_TOKENS:
        raise typer.BadParameter(f"{path}: max_output_tokens must be a whole number from 1 to {MAX_OUTPUT_TOKENS}")
    if given.get("priced_on") is not None:
        given["priced_on"] = _day(path, given["priced_on"])
    expected, deadline = given.get("expected_s", 5.0), given.get("deadline_s", 86_400)
    if not _number(expected) or not 0 < expected <= MAX_DEADLINE_S:
        raise typer.BadParameter(f"{path}: expected_s must be a number of seconds above 0")
    if not _number(deadline) or deadline != int(deadline) or not 1 <= deadline <= MAX_DEADLINE_S:
        raise typer.BadParameter(f"{path}: deadline_s must be whole seconds from 1 to {MAX_DEADLINE_S}")
    prices = {f"{name}_mc": _credits(path, name, given.pop(name)) for name in ("price", *BY_TOKENS) if name in given}
    return given | prices


def _check_unit(where: str, unit: str, kind: Any) -> None:
    """Raises typer.BadParameter where the tokens of a request could not be bounded before it is done."""
    if unit == "tokens" and kind not in texts.SOLD_BY_TOKENS:
        raise typer.BadParameter(
            f"{where}: only models of {', '.join(sorted(texts.SOLD_BY_TOKENS))} are sold by tokens"
        )
    if unit in BY_TIME and kind not in texts.SOLD_BY_TIME:
        raise typer.BadParameter(f"{where}: only models of {', '.join(texts.SOLD_BY_TIME)} are sold by time")


def _credits(path: Path, name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise typer.BadParameter(f"{path}: {name} must be credits")
    try:
        return read_credits(str(value))
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{path}: {name}: {error.message}") from None


def _day(path: Path, value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise typer.BadParameter(f"{path}: priced_on must be a day such as 2026-11-21") from None


def _by_tokens(model: Model) -> dict[str, Any]:
    """What only a model sold by tokens has."""
    if model.price_unit != "tokens":
        return {}
    prices = (model.input_price_mc, model.cached_price_mc, model.output_price_mc)
    return {
        **dict(zip(BY_TOKENS, map(printing.exact, prices), strict=True)), "price_source": model.price_source,
        "priced_on": model.priced_on and model.priced_on.isoformat(), "max_output_tokens": model.max_output_tokens,
        "on_disconnect": model.on_disconnect,
    }  # fmt: skip


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
             "weight": r.weight, "cost_micro_usd": r.cost_micro_usd}
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
        ("routed by", model.routing), ("next after", ", ".join(model.next_on) or "no error"),
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
    price_mc: Price = None,
    per: Annotated[
        Per | None, typer.Option("--per", help="What the price is for: an output, unless another is named.")
    ] = None,
    by_input_mc: InputPrice = None,
    by_cached_mc: CachedPrice = None,
    by_output_mc: OutputPrice = None,
    price_source: PriceSource = "",
    longest: Longest = 4096,
    on_disconnect: Disconnect = "drain",
    called: Annotated[
        str | None,
        typer.Option("--called", parser=read_name, metavar="TEXT", help="How people see it; its name otherwise."),
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Sell a model of a server that speaks OpenAI's interface: the model, what it takes, and the route to it."""
    by_tokens = by_input_mc is not None or by_output_mc is not None or (kind in texts.BY_CALLS and price_mc is not None)
    if price_mc is None and not by_tokens:
        raise typer.BadParameter("say a price: --price, or --input-price and --output-price")
    if by_tokens and per is not None:
        raise typer.BadParameter("a price by tokens is for a call: --per does not go with it")
    _check_unit(name, "tokens" if by_tokens else per or "output", kind)
    facts = {
        "name": name, "display_name": called or name, "kind": kind, "family": provider, "price_mc": price_mc or 0,
        "input_schema": offers.SCHEMAS[kind], "capabilities": offers.capabilities(kind), "expected_s": offers.EXPECTED_S[kind],
        "max_output_tokens": longest, "on_disconnect": on_disconnect, "price_unit": per or "output",
    }  # fmt: skip
    if by_tokens:
        read_mc = by_input_mc or 0
        facts |= {
            "price_unit": "tokens", "input_price_mc": read_mc, "output_price_mc": by_output_mc or 0,
            "cached_price_mc": read_mc if by_cached_mc is None else by_cached_mc, "price_source": price_source,
            "priced_on": datetime.now(UTC).date(),
        }  # fmt: skip

    async def work(db: Database) -> Model:
        async with session.operator_tx(db, org) as tx:
            there = await catalog.find_model(tx, name, disabled=True)
            if there is not None and there.org_id == tx.org_id:
                raise catalog.NameTaken(f"there is a model {name} already; limner models put changes it")
            model_id = await catalog.put_model(tx, facts)
            await catalog.put_route(tx, name, provider, provider_model=provider_model)
            await audit.record(tx, "model.put", "model", model_id, session.actor(), name=name, price_mc=price_mc or 0)
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


@app.command("set")
def change(
    name: Name,
    routing: Annotated[Routing | None, typer.Option("--routing", help="What orders its routes.")] = None,
    next_on: Annotated[
        Any,
        typer.Option(
            "--next-on",
            parser=read_kinds,
            metavar="CLASSES|none",
            help="After which errors the next provider is asked.",
        ),
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Whom a model's requests go to: the order of its routes, and when the next one is asked."""
    given = {"routing": routing, "next_on": next_on}
    changes = {column: value for column, value in given.items() if value is not None}
    if not changes:
        raise typer.BadParameter("say what to change: --routing or --next-on")

    async def work(db: Database) -> Model:
        async with session.operator_tx(db, org) as tx:
            await catalog.set_routing(tx, name, changes)
            await audit.record(tx, "model.changed", "model", name, session.actor(), **changes)
            model = await catalog.find_model(tx, name, disabled=True)
            assert model is not None
            return model

    model = session.run(work)
    if as_json:
        printing.document(shape(model))
    else:
        asked = ", ".join(model.next_on) or "no error"
        printing.say(f"model {name} is routed by {model.routing}; the next provider is asked after {asked}")


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
    flat = f"{amount} {UNITS[model.price_unit]}"
    if model.price_unit != "tokens":
        return flat
    read, cached, written = (
        printing.exact(price) for price in (model.input_price_mc, model.cached_price_mc, model.output_price_mc)
    )
    each = f"credits a million tokens: {read} read, {cached} cached, {written} written"
    return f"{flat} and {each}" if model.price_mc else each


def _fields(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    return [name if name in required else f"[{name}]" for name in schema.get("properties", {})]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
