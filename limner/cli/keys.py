"""`limner key`: API keys. A key's text is printed once, by create and rotate, and kept nowhere."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from limner.cli import printing, session
from limner.cli.arguments import App, AppOrAll, Json, Org, group
from limner.db.pools import Database
from limner.tenancy import api_keys, apps
from limner.tenancy.api_keys import ApiKey

app = group("API keys: create, list, rotate, revoke.")

DAY_S = 86_400
ONCE = "This is the only time the key is shown: keep it where only your server can read it."
Key = Annotated[str, typer.Argument(metavar="KEY", help="The key's shown prefix or its id.")]


def shape(key: ApiKey) -> dict[str, Any]:
    """For machines."""
    return {
        "id": key.id, "app_id": key.app_id, "name": key.name, "prefix": key.prefix, "scopes": key.scopes,
        "last_used_at": key.last_used_at, "expires_at": key.expires_at, "revoked_at": key.revoked_at,
        "created_at": key.created_at,
    }  # fmt: skip


@app.command("create")
def create(
    org: Org,
    app: App,
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help=f"Repeatable: {', '.join(api_keys.SCOPES)}.")
    ] = None,
    all_scopes: Annotated[bool, typer.Option("--all-scopes", help="Every scope.")] = False,
    expires: Annotated[
        int | None, typer.Option("--expires", min=1, max=3650, metavar="DAYS", help="End after so many days.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once. Without --scope: jobs:create, jobs:read, users:read."""
    if scope and all_scopes:
        raise typer.BadParameter("--scope and --all-scopes exclude each other")
    scopes = api_keys.SCOPES if all_scopes else tuple(dict.fromkeys(scope or api_keys.DEFAULT_SCOPES))

    async def work(db: Database) -> tuple[ApiKey, str]:
        async with session.operator_tx(db, org) as tx:
            until = datetime.fromtimestamp(db.clock.now(), UTC) + timedelta(days=expires) if expires else None
            return await api_keys.create(
                tx, await apps.get(tx, app), actor=session.actor(), name=name, scopes=scopes, expires_at=until
            )

    _tell_new(*session.run(work), as_json=as_json)


@app.command("list")
def list_all(org: Org, app: AppOrAll = None, as_json: Json = False) -> None:
    """Keys by app, newest first, without their secrets."""

    async def work(db: Database) -> list[tuple[str, ApiKey]]:
        async with session.operator_tx(db, org) as tx:
            chosen = [await apps.get(tx, app)] if app else await apps.list_all(tx)
            return [(one.slug, key) for one in chosen for key in await api_keys.list_of_app(tx, one)]

    found = session.run(work)
    if as_json:
        printing.document({"keys": [shape(key) | {"app": slug} for slug, key in found]})
        return
    now = datetime.now(UTC)
    rows = [
        (
            key.prefix,
            slug,
            key.name or None,
            " ".join(key.scopes),
            _state(key, now),
            key.last_used_at,
            key.expires_at,
            key.id,
        )
        for slug, key in found
    ]
    columns = ("prefix", "app", "name", "scopes", "state", "last used", "expires", "id")
    printing.table(columns, rows, empty="There is no key here.")


@app.command("rotate")
def rotate(
    key: Key,
    org: Org,
    overlap: Annotated[
        int,
        typer.Option("--overlap", min=0, max=30 * DAY_S, metavar="SECONDS", help="How long the old one still works."),
    ] = DAY_S,
    as_json: Json = False,
) -> None:
    """Make a key's successor and print it; the old one works for --overlap seconds more."""

    async def work(db: Database) -> tuple[ApiKey, str]:
        async with session.operator_tx(db, org) as tx:
            old = await api_keys.get(tx, key)
            its_app = await apps.get(tx, str(old.app_id))
            return await api_keys.rotate(tx, old, its_app, actor=session.actor(), overlap_s=overlap)

    _tell_new(*session.run(work), as_json=as_json)


@app.command("revoke")
def revoke(key: Key, org: Org, as_json: Json = False) -> None:
    """End a key: refused everywhere within a minute."""

    async def work(db: Database) -> ApiKey:
        async with session.operator_tx(db, org) as tx:
            found = await api_keys.get(tx, key)
            await api_keys.revoke(tx, found, actor=session.actor())
            return await api_keys.get(tx, str(found.id))

    revoked = session.run(work)
    if as_json:
        printing.document(shape(revoked))
    else:
        printing.say(f"key {revoked.prefix}… revoked; every process refuses it within a minute")


def _tell_new(key: ApiKey, text: str, *, as_json: bool) -> None:
    printing.note(ONCE)
    if as_json:
        printing.document(shape(key) | {"key": text})
    else:
        printing.say(text)


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "live"
