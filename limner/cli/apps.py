"""`limner app`: an organization's API clients."""

from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import (
    JobsPerMin,
    Json,
    MaxRunning,
    Monthly,
    Org,
    Weight,
    bound,
    group,
    limits_of,
    read_bound,
    read_count,
    read_credits,
    read_name,
)
from limner.db.pools import Database
from limner.hub import queue
from limner.tenancy import apps
from limner.tenancy.apps import App

app = group("Apps: an organization's API clients.")

MAX_USER_RATE = 6000
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
        "enabled": found.is_enabled, "welcome": printing.exact(found.welcome_mc),
        "monthly_credits": printing.exact(found.monthly_mc), "jobs_per_min": found.jobs_per_min,
        "user_jobs_per_min": found.user_jobs_per_min, "keep_days": found.keep_days, "keep_jobs": found.keep_jobs,
        "body_users": found.body_users, "created_at": found.created_at,
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
    body_users: Annotated[
        bool | None,
        typer.Option("--body-users/--no-body-users", help="Whether /v1 takes a body's `user` for the end user without X-User-ID."),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Change what is given, leave the rest."""
    if name is None and description is None and welcome is None and body_users is None:
        raise typer.BadParameter("nothing to change: give --name, --description, --welcome or --body-users")
    _change(slug, org, as_json, name=name, description=description, welcome_mc=welcome, body_users=body_users)


@app.command("set")
def set_limits(
    slug: Slug,
    org: Org,
    weight: Weight = None,
    max_running: MaxRunning = None,
    jobs_per_min: JobsPerMin = None,
    user_jobs_per_min: Annotated[
        int | None,
        typer.Option(
            "--user-jobs-per-min",
            parser=read_bound,
            metavar="N|none",
            help="The same for each end user, at most 6,000.",
        ),
    ] = None,
    monthly: Monthly = None,
    keep_days: Annotated[
        int | None,
        typer.Option(
            "--keep-days",
            parser=read_bound,
            metavar="N|none",
            help="Erase inputs and outputs of jobs this many days after their end.",
        ),
    ] = None,
    keep_jobs: Annotated[
        int | None,
        typer.Option(
            "--keep-jobs",
            parser=read_count,
            metavar="N|none",
            help="Keep those of the newest N ended jobs; 0: of none.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set its limits, allowance, retention and part of the workers; "none": as the installation has it. Within a minute."""
    if (user_jobs_per_min or 0) > MAX_USER_RATE:
        raise typer.BadParameter(f"--user-jobs-per-min is at most {MAX_USER_RATE:,}")
    limits = limits_of(monthly, jobs_per_min=jobs_per_min, user_jobs_per_min=user_jobs_per_min, keep_days=keep_days,
                       keep_jobs=keep_jobs)  # fmt: skip
    if not limits and weight is None and max_running is None:
        raise typer.BadParameter("nothing to set: see limner app set --help")

    async def work(db: Database) -> tuple[App, tuple[int, int | None]]:
        async with session.operator_tx(db, org) as tx:
            found = await apps.get(tx, slug)
            if limits:
                found = await apps.set_limits(tx, found, limits, actor=session.actor())
            if weight is not None or max_running is not None:
                await queue.share(tx, found.id, actor=session.actor(), weight=weight, max_running=bound(max_running))
            return found, await queue.get_share(tx, found.id)

    changed, (its_weight, its_cap) = session.run(work)
    if as_json:
        printing.document(shape(changed) | {"weight": its_weight, "max_running": its_cap})
    else:
        printing.say(f"app {changed.slug} changed")


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
