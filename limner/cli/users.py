"""`limner user`: the people inside an app."""

from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli import wallets as shown
from limner.cli.arguments import App, Credits, Expires, Json, Kind, Limit, Org, Reason, Ref, group, read_json_object
from limner.db.pools import Database
from limner.kit import ids
from limner.ledger import lots, wallets
from limner.tenancy import apps, audit, end_users, operator_credits
from limner.tenancy.end_users import EndUser

app = group("End users: the people inside an app.")

MAX_METADATA = 16_384


def read_external_id(text: str) -> str:
    """Raises typer.BadParameter."""
    if not end_users.valid_external_id(text):
        raise typer.BadParameter("an external id is 1 to 255 printable characters without blanks around it")
    return text


def read_metadata(text: str) -> dict[str, Any]:
    """Raises typer.BadParameter."""
    value = read_json_object(text)
    if len(text.encode()) > MAX_METADATA:
        raise typer.BadParameter("metadata is at most 16 KiB")
    return value


User = Annotated[
    str, typer.Argument(parser=read_external_id, metavar="EXTERNAL_ID", help="What the app calls the user.")
]


def shape(user: EndUser) -> dict[str, Any]:
    """For machines."""
    return {
        "id": user.id, "external_id": user.external_id, "active": user.is_active, "metadata": user.metadata,
        "created_at": user.created_at,
    }  # fmt: skip


@app.command("list")
def list_all(
    org: Org,
    app: App,
    limit: Limit = 100,
    after: Annotated[str, typer.Option("--after", help="Continue behind this external id.")] = "",
    as_json: Json = False,
) -> None:
    """An app's end users, by external id."""

    async def work(db: Database) -> list[EndUser]:
        async with session.operator_tx(db, org) as tx:
            return await end_users.list_of_app(tx, (await apps.get(tx, app)).id, limit, after)

    found = session.run(work)
    if as_json:
        printing.document({"users": [shape(user) for user in found]})
        return
    rows = [(user.external_id, user.is_active, user.created_at, user.id) for user in found]
    printing.table(("external id", "active", "created", "id"), rows, empty="There is no end user here yet.")


@app.command("show")
def show(user: User, org: Org, app: App, as_json: Json = False) -> None:
    """One end user and the wallet, with the lots in it: credits that end. Leaves an audit row."""

    async def work(db: Database) -> tuple[EndUser, wallets.Wallet, list[lots.Lot]]:
        async with session.operator_tx(db, org) as tx:
            found = await end_users.get(tx, (await apps.get(tx, app)).id, user)
            await audit.record(tx, "end_user.read", "end_user", found.id, session.actor())
            return found, await wallets.get(tx, found.id), await lots.list_open(tx, found.id, shown.LOTS_SHOWN)

    found, wallet, its_lots = session.run(work)
    if as_json:
        counts = {"jobs": wallet.jobs_submitted, "succeeded": wallet.jobs_succeeded}
        printing.document(shape(found) | {"wallet": shown.shape(wallet, its_lots)} | counts)
        return
    printing.facts([
        ("end user", found.external_id), ("id", found.id), ("active", found.is_active),
        *shown.facts(wallet),
        ("jobs", f"{wallet.jobs_submitted}, {wallet.jobs_succeeded} succeeded"), ("metadata", found.metadata or None),
        ("created", found.created_at),
    ])  # fmt: skip
    shown.tell_lots(its_lots)


@app.command("enable")
def enable(user: User, org: Org, app: App, as_json: Json = False) -> None:
    """Let an end user spend again."""
    _change(user, org, app, as_json, is_active=True)


@app.command("disable")
def disable(user: User, org: Org, app: App, as_json: Json = False) -> None:
    """Refuse an end user's new jobs (403); those under way finish."""
    _change(user, org, app, as_json, is_active=False)


@app.command("metadata")
def replace_metadata(
    user: User,
    value: Annotated[
        Any,
        typer.Argument(parser=read_metadata, metavar="JSON", help="An object of at most 16 KiB; replaces the old one."),
    ],
    org: Org,
    app: App,
    as_json: Json = False,
) -> None:
    """Replace what an app noted about an end user."""
    _change(user, org, app, as_json, metadata=value)


@app.command("grant")
def grant(
    user: User, amount: Credits, org: Org, app: App, reason: Reason = "Granted by an operator",
    kind: Kind = "grant", expires: Expires = None, ref: Ref = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Give an end user credits; a new user is made. The same reference again changes nothing and says so."""
    reference = ref or str(ids.new())

    async def work(db: Database) -> wallets.Grant:
        async with session.operator_tx(db, org) as tx:
            its_app = await apps.get(tx, app)
            return await operator_credits.grant(
                tx, its_app, user, amount, reason, ref=reference, actor=session.actor(), kind=kind, expires_at=expires
            )

    shown.tell_moved("was granted", user, session.run(work), reference, as_json=as_json)


def _change(user: str, org: str, app: str, as_json: bool, **given: Any) -> None:
    async def work(db: Database) -> EndUser:
        async with session.operator_tx(db, org) as tx:
            app_id = (await apps.get(tx, app)).id
            await end_users.change(tx, await end_users.get(tx, app_id, user), actor=session.actor(), **given)
            return await end_users.get(tx, app_id, user)

    changed = session.run(work)
    if as_json:
        printing.document(shape(changed))
    else:
        printing.say(f"end user {changed.external_id} changed")
