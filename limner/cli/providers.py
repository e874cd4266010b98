"""`limner providers`: who runs the models."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from limner.cli import printing, provider_keys, provider_probes, provider_seeds, session
from limner.cli.arguments import (
    MAX_BOUND,
    NO_BOUND,
    Json,
    OrgOrPlatform,
    group,
    read_bound,
    read_json_file,
    read_json_object,
    read_name,
)
from limner.cli.models import check_fields
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.catalog import Provider
from limner.hub.providers import configuration, registry
from limner.tenancy import audit

app = group("Providers: who runs the models.")
app.add_typer(provider_keys.app, name="keys")

REQUIRED = ("name", "display_name", "adapter")
OPTIONAL = ("base_url", "config", *catalog.LIMITS)
MOST_TOKENS = 1_000_000_000_000
PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The provider's name.")]


def read_provider_name(text: str) -> str:
    """Raises typer.BadParameter."""
    if not PROVIDER_NAME.fullmatch(text):
        raise typer.BadParameter("a provider's name is 1 to 63 lower-case letters, digits and -, no - first")
    return text


def read_tokens(text: str) -> int:
    """As `read_bound`, of tokens. Raises typer.BadParameter."""
    if text == "none":
        return NO_BOUND
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MOST_TOKENS:
        raise typer.BadParameter(f'{text!r} is neither a whole number from 1 to {MOST_TOKENS:,} nor "none"')
    return int(text)


def shape(provider: Provider) -> dict[str, Any]:
    """For machines: what `providers put` takes, and where the row belongs."""
    return {
        "name": provider.name, "display_name": provider.display_name, "adapter": provider.adapter,
        "base_url": provider.base_url, "config": provider.config,
        **{name: getattr(provider, name) for name in catalog.LIMITS},
        "enabled": provider.is_enabled, "platform": provider.org_id == PLATFORM,
    }  # fmt: skip


def read_provider(path: Path) -> dict[str, Any]:
    """The facts of `catalog.put_provider` from a file. Raises typer.BadParameter with the field that is wrong."""
    given = read_json_file(path)
    check_fields(path, given, REQUIRED, OPTIONAL)
    for name in ("name", "display_name", "adapter"):
        if not isinstance(given[name], str) or not given[name]:
            raise typer.BadParameter(f"{path}: {name} must be text")
    if not isinstance(given.get("base_url"), str | None):
        raise typer.BadParameter(f"{path}: base_url must be text or null")
    if not isinstance(given.get("config", {}), dict):
        raise typer.BadParameter(f"{path}: config must be an object")
    most = {"max_running": MAX_BOUND, "requests_per_min": MAX_BOUND, "tokens_per_min": MOST_TOKENS, "window_s": 60}
    for name, bound in most.items():
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= bound):
            raise typer.BadParameter(f"{path}: {name} must be a whole number from 1 to {bound:,}, or null")
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
        (p.name, p.adapter, p.base_url, p.max_running, p.requests_per_min, p.tokens_per_min, p.is_enabled,
         "platform" if p.org_id == PLATFORM else "own",
         p.display_name)
        for p in found
    ]  # fmt: skip
    columns = ("name", "adapter", "address", "most", "requests/min", "tokens/min", "enabled", "whose", "called")
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
    known = registry.all_kinds()
    if provider.adapter not in known:
        printing.note(f"no worker of this release has an adapter {provider.adapter}; there are {', '.join(known)}")
    if as_json:
        printing.document(shape(provider))
    else:
        printing.say(f"provider {provider.name} works by the adapter {provider.adapter}")


@app.command("add")
def add(
    name: Annotated[
        str, typer.Argument(parser=read_provider_name, metavar="NAME", help="Lower-case letters, digits, -.")
    ],
    url: Annotated[
        str | None,
        typer.Argument(metavar="URL", help="Its address, e.g. http://127.0.0.1:11434/v1; its adapter's own otherwise."),
    ] = None,
    adapter: Annotated[
        str, typer.Option("--adapter", metavar="NAME", help="What it speaks: limner providers adapters.")
    ] = "openai",
    called: Annotated[
        str | None,
        typer.Option("--called", parser=read_name, metavar="TEXT", help="How people see it; its name otherwise."),
    ] = None,
    config: Annotated[
        Any, typer.Option("--config", parser=read_json_object, metavar="JSON", help="What servers differ in.")
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """Add a server that speaks OpenAI's interface (OpenAI itself, Ollama, vLLM, a gateway), or what another adapter speaks."""
    if adapter not in registry.all_kinds():
        raise typer.BadParameter(f"there is no adapter {adapter}; there are {', '.join(registry.all_kinds())}")
    facts = {"name": name, "display_name": called or name, "adapter": adapter, "base_url": url, "config": config or {}}

    async def work(db: Database) -> Provider:
        async with session.operator_tx(db, org) as tx:
            if any(p.name == name and p.org_id == tx.org_id for p in await catalog.list_providers(tx)):
                raise catalog.NameTaken(f"there is a provider {name} already; limner providers put changes it")
            provider_id = await catalog.put_provider(tx, facts)
            await audit.record(tx, "provider.put", "provider", provider_id, session.actor(), name=name)
            return next(p for p in await catalog.list_providers(tx) if p.id == provider_id)

    provider = session.run(work)
    if as_json:
        printing.document(shape(provider))
    else:
        where = configuration.address(adapter, url)
        printing.say(f"provider {name} is at {where}; limner providers check {name} asks for its models")


@app.command("check")
def check(name: Name, org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """Ask a server for its models, as workers with these settings would."""
    found = provider_probes.asked(
        session.run(lambda db: _find(db, org, name)), session.settings(), provider_probes.models_of
    )
    if as_json:
        printing.document({"provider": name, "models": found})
        return
    printing.table(("models",), [(model,) for model in found], empty=f"{name} answers, and has no models.")


async def _find(db: Database, org: str | None, name: str) -> Provider:
    async with session.operator_tx(db, org) as tx:
        for provider in await catalog.list_providers(tx):
            if provider.name == name:
                return provider
    raise catalog.ProviderNotFound(f"there is no provider {name} here")


@app.command("adapters")
def list_adapters(as_json: Json = False) -> None:
    """What limner can speak to: its own adapters, and those of installed packages."""
    kinds = sorted(registry.all_kinds().values(), key=lambda kind: kind.name)
    if as_json:
        printing.document({"adapters": [
            {"name": kind.name, "call_class": kind.call_class, "kinds": sorted(kind.kinds), "default_base_url": kind.default_base_url,
             "key_header": kind.auth.header, "answers_at_once": kind.answering is not None}
            for kind in kinds
        ]})  # fmt: skip
        return
    rows = [
        (kind.name, kind.call_class, kind.default_base_url, kind.answering is not None, " ".join(sorted(kind.kinds)))
        for kind in kinds
    ]
    printing.table(("name", "class", "address", "answers /v1", "serves"), rows, empty="There is no adapter.")


app.command("test")(provider_probes.probe)
app.command("seed")(provider_seeds.install)


@app.command("set")
def change(
    name: Name,
    max_running: Annotated[
        int | None,
        typer.Option(
            "--max-running", parser=read_bound, metavar="N|none", help="At most so many jobs and calls at once."
        ),
    ] = None,
    requests_per_min: Annotated[
        int | None,
        typer.Option("--requests-per-min", parser=read_bound, metavar="N|none", help="It is asked at most so often."),
    ] = None,
    tokens_per_min: Annotated[
        int | None,
        typer.Option("--tokens-per-min", parser=read_tokens, metavar="N|none", help="At most for so many tokens."),
    ] = None,
    window_s: Annotated[
        int | None,
        typer.Option("--window-s", min=1, max=60, help="Both hold in any so many seconds, in proportion; 60 at first."),
    ] = None,
    org: OrgOrPlatform = None,
    as_json: Json = False,
) -> None:
    """How much a provider takes, over all processes and organizations."""
    given = {"max_running": max_running, "requests_per_min": requests_per_min, "tokens_per_min": tokens_per_min,
             "window_s": window_s}  # fmt: skip
    limits = {column: None if value == NO_BOUND else value for column, value in given.items() if value is not None}
    if not limits:
        raise typer.BadParameter(
            "say what to change: --max-running, --requests-per-min, --tokens-per-min or --window-s"
        )

    async def work(db: Database) -> Provider:
        async with session.operator_tx(db, org) as tx:
            await catalog.limit_provider(tx, name, limits)
            await audit.record(tx, "provider.changed", "provider", name, session.actor(), **limits)
            return next(p for p in await catalog.list_providers(tx) if p.name == name and p.org_id == tx.org_id)

    provider = session.run(work)
    if as_json:
        printing.document(shape(provider))
    else:
        printing.say(f"provider {name} has {_most(provider)}")


def _most(provider: Provider) -> str:
    cap = provider.max_running
    words = [f"at most {cap} jobs at once" if cap else "any number of jobs at once"]
    for count, unit in ((provider.requests_per_min, "requests"), (provider.tokens_per_min, "tokens")):
        if count is not None:
            held = "" if provider.window_s == 60 else f" ({count * provider.window_s // 60:,} in {provider.window_s} s)"
            words.append(f"{count:,} {unit} a minute{held}")
    return ", ".join(words)


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
