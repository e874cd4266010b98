"""`limner db`: the database behind everything. The one command that knows Alembic."""

import asyncio
import os
import shutil
import signal
import subprocess
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from limner.cli import demo_tenant, printing, session
from limner.cli.arguments import Json, group
from limner.db import lint, migrate, revisions, roles
from limner.db.embedded import EmbeddedPostgres
from limner.db.pools import Database
from limner.hub import resealing
from limner.kit.crypto import RootKey
from limner.settings import Settings

PGBOUNCER_INI = """[databases]
{database} = {place}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 6432
unix_socket_dir =
auth_type = scram-sha-256
auth_file = /etc/pgbouncer/userlist.txt
pool_mode = transaction
default_pool_size = 10
max_client_conn = 1000
query_wait_timeout = 10
server_login_retry = 1
"""

app = group("The database: migrate, check, lint, psql, pgbouncer.")


@app.command("migrate")
def bring_up_to_date(as_json: Json = False) -> None:
    """Bring roles, schema and the local provider's catalog to this release. Safe to run again, and twice at once."""
    config = session.settings()
    root = session.root_key(config)
    with session.postgres(config) as url:
        try:
            before, after = migrate.migrate(url, root)
        except migrate.MigrationError as error:
            printing.fail(" ".join(str(error).split()))
        models = asyncio.run(_install(config, url, root))
    if as_json:
        printing.document({"before": before, "after": after, "models": models})
    else:
        printing.say(f"schema {before or 'nothing'} → {after}; {models} local models installed")


@app.command("check")
def check(as_json: Json = False) -> None:
    """Whether this release can run on the database as it is; exit 1 and the reasons when it cannot."""
    config = session.settings()
    root = session.root_key(config)
    with session.postgres(config) as url:
        problem = session.behind(url)
        problems = [f"{problem}: run limner db migrate"] if problem else session.role_problems(url, root, roles.RUNTIME)
        if not problem:
            problems += [f"lint: {rule}: {found}" for rule, found in _findings(url)]
    if as_json:
        printing.document({"ok": not problems, "needed": revisions.head(), "problems": problems})
    elif problems:
        for words in problems:
            printing.say(f"✗ {words}")
    else:
        printing.say(f"✓ schema {revisions.head()}, {len(roles.RUNTIME)} roles as weak as they must be, lint clean")
    if problems:
        raise typer.Exit(1)


@app.command("reseal")
def reseal(as_json: Json = False) -> None:
    """Seal under the present root key what old ones sealed: organizations' own keys, webhook secrets. While everything goes on."""
    root = session.root_key(session.settings())
    done = session.run(lambda db: resealing.Resealing(db, root).reseal_all())
    if as_json:
        printing.document({"keys": done.keys, "webhook_secrets": done.secrets, "broken": done.broken})
    else:
        printing.say(f"{done.keys} own keys and {done.secrets} webhook secrets are under the present root key now")
    if done.broken:
        printing.fail(f"{done.broken} open under no root key that is here: see LIMNER_OLD_ROOT_KEYS")


@app.command("lint")
def show_findings(as_json: Json = False) -> None:
    """Read the isolation rules back from the database's own catalog; exit 1 on any finding."""
    config = session.settings()
    with session.postgres(config) as url:
        if (problem := session.behind(url)) is not None:
            printing.fail(f"{problem}: there is nothing to lint; run limner db migrate")
        found = _findings(url)
    if as_json:
        printing.document({"findings": [{"rule": rule, "object": name} for rule, name in found]})
    else:
        printing.table(("rule", "object"), found, empty="No finding.")
    if found:
        raise typer.Exit(1)


@app.command("psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(ctx: typer.Context) -> None:
    """Open psql as the migrating role; every argument is psql's. Its exit code is the command's."""
    config = session.settings()
    with session.postgres(config) as url:
        parts = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
        password = parts.pop("password", None)
        env = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
        if password is not None:
            env["PGPASSWORD"] = password  # never in the arguments: everybody on the machine can read those
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for psql, which cancels its statement
        code = subprocess.call([_psql(config), "-d", make_conninfo("", **parts), *ctx.args], env=env)
    raise typer.Exit(code)


@app.command("pgbouncer")
def pooler(
    ini: Annotated[
        bool, typer.Option("--ini", help="Print a pgbouncer.ini to start from instead; no secrets.")
    ] = False,
) -> None:
    """Print PgBouncer's userlist.txt for the run-time roles. It holds passwords: keep it as secret as the root key."""
    config = session.settings()
    if ini:
        with session.postgres(config) as url:
            print(_ini(url), end="")
        return
    root = session.root_key(config)
    printing.note("These are passwords: write them to a file that only PgBouncer can read (auth_type = scram-sha-256).")
    for role in roles.RUNTIME:
        print(f'"{role}" "{root.password(role)}"')


def _ini(url: str) -> str:
    """What docs/operate/scale-out.md explains line by line; passwords stand in the user list, not here."""
    parts = conninfo_to_dict(url)
    place = " ".join(f"{name}={parts[name]}" for name in ("host", "port", "dbname") if parts.get(name) is not None)
    return PGBOUNCER_INI.format(database=parts.get("dbname") or parts.get("user") or "postgres", place=place)


async def _install(config: Settings, url: str, root: RootKey) -> int:
    db = Database(session.address(config, url), root, session.OPERATOR, size=1)
    try:
        await db.open()
        return await demo_tenant.install_catalog(db)
    finally:
        await db.close()


def _findings(url: str) -> list[tuple[str, str]]:
    with psycopg.connect(url) as conn:
        return lint.findings(conn)


def _psql(config: Settings) -> str:
    if config.embedded:
        return str(EmbeddedPostgres(config.home).psql())
    return shutil.which("psql") or str(EmbeddedPostgres(config.home).psql())
