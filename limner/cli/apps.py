"""`limner app`: an organization's API clients."""

from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import Json, Org, group, read_credits, read_name
from limner.db.pools import Database
from limner.tenancy import apps
from limner.tenancy.apps import App

app = group("Apps: an organization's API clients.")

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="The app's slug or id.")]
Name = Annotated[str | None, typer.Option("--name", parser=read_name, metavar="TEXT", help="Display name.")]
Description = Annotated[str | None, typer.Option("--description", metavar="TEXT", help="At most 2,000 characters.")]
Welcome = Annotated[
    int | None,
    typer.Option("--welcome", parser=read_credits, metavar="CREDITS", help="What each new end user is granted."),
]


def shape(found: App) -> dict[str, Any]:
    """For machines."""
    return {
        "id": found.id, "slug": found.slug, "name": found.name, "description": found.description,
        "enabled": found.is_enabled, "welcome": printing.exact(found.welcome_mc), "created_at": found.created_at,
    }  # fmt: skip


@app.command("create")
def create(
    slug: Annotated[str, typer.Argument(help="Its short name: a-z, 0-9 and -.")],
    org: Org,
    name: Name = None,
    description: Description = None,
    welcome: Welcome = None,
    as_json: Json = False,
) -> None:
    """Make an app."""

    async def work(db: Database) -> App:
        async with session.operator_tx(db, org) as tx:
            return await apps.create(
                tx, slug, name or slug, actor=session.actor(), description=description or "", welcome_mc=welcome or 0
            )

    made = session.run(work)
    if as_json:
        printing.document(shape(made))
    else:
        printing.say(f"app {made.slug} made ({made.id}); next: limner key create --org {org} --app {made.slug}")


@app.command("list")
def list_all(org: Org, as_json: Json = False) -> None:
    """An organization's apps, by slug (at most 1,000)."""

    async def work(db: Database) -> list[App]:
        async with session.operator_tx(db, org) as tx:
            return await apps.list_all(tx)

    found = session.run(work)
    if as_json:
        printing.document({"apps": [shape(one) for one in found]})
        return
    rows = [(a.slug, a.name, a.is_enabled, printing.grouped(a.welcome_mc), a.created_at, a.id) for a in found]
    printing.table(("slug", "name", "enabled", "welcome", "created", "id"), rows, empty="There is no app here.")


@app.command("change")
def change(
    slug: Slug, org: Org, name: Name = None, description: Description = None, welcome: Welcome = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Change what is given, leave the rest."""
    if name is None and description is None and welcome is None:
        raise typer.BadParameter("nothing to change: give --name, --description or --welcome")
    _change(slug, org, as_json, name=name, description=description, welcome_mc=welcome)


@app.command("enable")
def enable(slug: Slug, org: Org, as_json: Json = False) -> None:
    """Let an app's keys work again."""
    _change(slug, org, as_json, is_enabled=True)


@app.command("disable")
def disable(slug: Slug, org: Org, as_json: Json = False) -> None:
    """Answer 403 to an app's keys, within a minute."""
    _change(slug, org, as_json, is_enabled=False)


def _change(slug: str, org: str, as_json: bool, **given: Any) -> None:
    async def work(db: Database) -> App:
        async with session.operator_tx(db, org) as tx:
            return await apps.change(tx, await apps.get(tx, slug), actor=session.actor(), **given)

    changed = session.run(work)
    if as_json:
        printing.document(shape(changed))
    else:
        printing.say(f"app {changed.slug} changed")
