"""`limner org`: organizations, their own wallets, their audit log."""

from typing import Annotated, Any

import typer

from limner.cli import org_ai, printing, session
from limner.cli import wallets as shown
from limner.cli.arguments import (
    Credits,
    Expires,
    JobsPerMin,
    Json,
    Kind,
    Limit,
    MaxRunning,
    Monthly,
    Reason,
    Ref,
    Weight,
    bound,
    group,
    limits_of,
    read_bound,
    read_cap,
    read_name,
    read_positive_credits,
)
from limner.db.pools import Database
from limner.hub import queue
from limner.kit import ids
from limner.ledger import lots, wallets
from limner.tenancy import apps, audit, operator_credits, organizations
from limner.tenancy.organizations import Grants, Organization

app = group("Organizations: the tenants, their credits and their audit log.")

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="The organization's slug or id.")]
Name = Annotated[str | None, typer.Option("--name", parser=read_name, metavar="TEXT", help="Display name.")]
GRANTS_HELP = "Where end users' credits come from: issued, or out of the organization's own wallet."


def shape(org: Organization) -> dict[str, Any]:
    """For machines."""
    return {
        "id": org.org_id, "slug": org.slug, "name": org.name, "active": org.is_active, "grants": org.grants,
        "exposure_cap": printing.exact(org.exposure_cap_mc), "monthly_credits": printing.exact(org.monthly_mc),
        "jobs_per_min": org.jobs_per_min, "max_open": org.max_open, "show_costs": org.show_costs,
        "created_at": org.created_at,
    }  # fmt: skip


@app.command("create")
def create(
    slug: Annotated[str, typer.Argument(help="Its short name: a-z, 0-9 and -.")],
    name: Name = None,
    grants: Annotated[Grants, typer.Option("--grants", help=GRANTS_HELP)] = "issue",
    exposure_cap: Annotated[
        int | None,
        typer.Option("--exposure-cap", parser=read_positive_credits, metavar="CREDITS",
                     help="The most its wallets may hold together, when credits are issued."),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make an organization with an empty wallet."""

    async def work(db: Database) -> Organization:
        async with db.tenant_tx(ids.new(), "limner_operator") as tx:
            await organizations.create(
                tx, slug, name or slug, actor=session.actor(), grants=grants, exposure_cap_mc=exposure_cap
            )
            return await organizations.get(tx, slug)

    org = session.run(work)
    if as_json:
        printing.document(shape(org))
    else:
        printing.say(f"organization {org.slug} made ({org.org_id}); next: limner app create NAME --org {org.slug}")


@app.command("list")
def list_all(as_json: Json = False) -> None:
    """Every organization, by slug (at most 1,000)."""

    async def work(db: Database) -> list[Organization]:
        async with db.system_tx("limner_operator", "an operator lists the installation's organizations") as tx:
            return await organizations.list_all(tx)

    found = session.run(work)
    if as_json:
        printing.document({"organizations": [shape(org) for org in found]})
        return
    rows = [
        (o.slug, o.name, o.is_active, o.grants, printing.grouped(o.exposure_cap_mc), o.created_at, o.org_id)
        for o in found
    ]
    printing.table(
        ("slug", "name", "active", "grants", "cap", "created", "id"), rows, empty="There is no organization."
    )


@app.command("show")
def show(slug: Slug, as_json: Json = False) -> None:
    """One organization, its apps, and its own wallet: what it can spend, what it owes, and the lots in it (credits that end)."""

    async def work(
        db: Database,
    ) -> tuple[Organization, wallets.Wallet, list[lots.Lot], list[apps.App], tuple[int, int | None]]:
        async with session.operator_tx(db, slug) as tx:
            return (
                await organizations.get(tx, str(tx.org_id)),
                await wallets.get(tx, tx.org_id),
                await lots.list_open(tx, tx.org_id, shown.LOTS_SHOWN),
                await apps.list_all(tx),
                await queue.get_share(tx, None),
            )

    org, wallet, its_lots, its_apps, (weight, max_running) = session.run(work)
    if as_json:
        its = {"apps": [app.slug for app in its_apps], "weight": weight, "max_running": max_running}
        printing.document(shape(org) | {"wallet": shown.shape(wallet, its_lots)} | its)
        return
    printing.facts([
        ("organization", org.slug), ("name", org.name), ("id", org.org_id), ("active", org.is_active),
        ("grants", org.grants), ("exposure cap", printing.grouped(org.exposure_cap_mc)),
        ("shows costs", org.show_costs), *shown.facts(wallet), ("monthly credits", printing.grouped(org.monthly_mc)),
        ("jobs a minute", org.jobs_per_min), ("open jobs at most", org.max_open), ("weight", weight),
        ("running at most", max_running), ("apps", ", ".join(app.slug for app in its_apps) or None),
        ("created", org.created_at),
    ])  # fmt: skip
    shown.tell_lots(its_lots)


@app.command("change")
def change(
    slug: Slug,
    name: Name = None,
    grants: Annotated[Grants | None, typer.Option("--grants", help=GRANTS_HELP)] = None,
    exposure_cap: Annotated[
        int | None,
        typer.Option("--exposure-cap", parser=read_cap, metavar="CREDITS|none", help='A new cap; "none" lifts it.'),
    ] = None,
    show_costs: Annotated[
        bool | None,
        typer.Option("--show-costs/--hide-costs", help="Whether its receipts and usage tell what providers cost."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change what is given, leave the rest."""
    if name is None and grants is None and exposure_cap is None and show_costs is None:
        raise typer.BadParameter("nothing to change: give --name, --grants, --exposure-cap or --show-costs")
    _change(slug, as_json, name=name, grants=grants, exposure_cap_mc=exposure_cap, show_costs=show_costs)


@app.command("set")
def set_limits(
    slug: Slug,
    weight: Weight = None,
    max_running: MaxRunning = None,
    jobs_per_min: JobsPerMin = None,
    max_open: Annotated[
        int | None,
        typer.Option("--max-open", parser=read_bound, metavar="N|none", help="At most so many open jobs."),
    ] = None,
    monthly: Monthly = None,
    as_json: Json = False,
) -> None:
    """Set its limits, its allowance and its part of the workers; "none" lifts a limit. In force within a minute."""
    limits = limits_of(monthly, jobs_per_min=jobs_per_min, max_open=max_open)
    if not limits and weight is None and max_running is None:
        raise typer.BadParameter(
            "nothing to set: give --weight, --max-running, --jobs-per-min, --max-open or --monthly-credits"
        )

    async def work(db: Database) -> tuple[Organization, tuple[int, int | None]]:
        async with session.operator_tx(db, slug) as tx:
            if limits:
                await organizations.set_limits(tx, limits, actor=session.actor())
            if weight is not None or max_running is not None:
                await queue.share(tx, None, actor=session.actor(), weight=weight, max_running=bound(max_running))
            return await organizations.get(tx, str(tx.org_id)), await queue.get_share(tx, None)

    org, (its_weight, its_cap) = session.run(work)
    if as_json:
        printing.document(shape(org) | {"weight": its_weight, "max_running": its_cap})
    else:
        printing.say(f"organization {org.slug} changed")


@app.command("enable")
def enable(slug: Slug, as_json: Json = False) -> None:
    """Let an organization's keys work again."""
    _change(slug, as_json, is_active=True)


@app.command("disable")
def disable(slug: Slug, as_json: Json = False) -> None:
    """Answer 403 to all of an organization's keys, within a minute."""
    _change(slug, as_json, is_active=False)


@app.command("topup")
def top_up(
    slug: Slug, amount: Credits, reason: Reason = "Top-up", kind: Kind = "grant", expires: Expires = None, ref: Ref = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Issue credits to an organization's own wallet. The same reference again changes nothing and says so."""
    reference = ref or str(ids.new())

    async def work(db: Database) -> wallets.Grant:
        async with session.operator_tx(db, slug) as tx:
            return await operator_credits.top_up(
                tx, amount, reason, ref=reference, actor=session.actor(), kind=kind, expires_at=expires
            )

    shown.tell_moved("topped up", slug, session.run(work), reference, as_json=as_json)


@app.command("audit")
def list_audit(slug: Slug, limit: Limit = 50, as_json: Json = False) -> None:
    """Who changed what in an organization, newest first."""

    async def work(db: Database) -> list[dict[str, Any]]:
        async with session.operator_tx(db, slug) as tx:
            return await audit.list_entries(tx, limit)

    entries = session.run(work)
    if as_json:
        printing.document({"entries": entries})
        return
    rows = [
        (
            e["created_at"],
            e["actor"],
            e["action"],
            e["entity_id"],
            ", ".join(f"{k}={v}" for k, v in e["metadata"].items()),
        )
        for e in entries
    ]
    printing.table(("at", "who", "did", "to", "facts"), rows, empty="Nothing was changed yet.")


app.command("ai")(org_ai.ai)


def _change(slug: str, as_json: bool, **given: Any) -> None:
    async def work(db: Database) -> Organization:
        async with session.operator_tx(db, slug) as tx:
            await organizations.change(tx, actor=session.actor(), **given)
            return await organizations.get(tx, str(tx.org_id))

    org = session.run(work)
    if as_json:
        printing.document(shape(org))
    else:
        printing.say(f"organization {org.slug} changed")
