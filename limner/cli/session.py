"""What commands share: settings, the root key, a database that is attached to or started for the command's duration."""

import asyncio
import contextlib
import getpass
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NoReturn, TypeVar
from uuid import UUID

import psycopg
import typer
from pydantic import ValidationError
from rich.console import Console

from limner.db import lint, migrate
from limner.db.embedded import EmbeddedError, EmbeddedPostgres
from limner.db.pools import Address, Database, DatabaseUnavailable, runtime_conninfo
from limner.db.tx import Tx
from limner.kit.crypto import RootKey
from limner.settings import Settings, SettingsError, load_root_key
from limner.tenancy import organizations

T = TypeVar("T")
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    err.print(f"[bold red]error:[/] {message}", highlight=False)
    raise typer.Exit(code)


def settings() -> Settings:
    """The settings, or an explanation of what is wrong with them."""
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(f"LIMNER_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        fail(f"settings: {problems}")


def root_key(config: Settings) -> RootKey:
    try:
        return load_root_key(config)
    except (SettingsError, OSError) as error:
        fail(str(error))


@contextlib.contextmanager
def postgres(config: Settings) -> Iterator[str]:
    """The migrating role's address: of LIMNER_DATABASE_URL, or of the embedded server, attached to or started."""
    if config.database_url is not None:
        yield config.database_url
        return
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(EmbeddedPostgres(config.home).running())
        except EmbeddedError as error:
            fail(str(error))
        yield url


def address(config: Settings, url: str) -> Address:
    return Address(url, config.database_pool_url, config.database_prepare)


def bring_up_to_date(url: str, root: RootKey) -> tuple[str | None, str]:
    """Roles, schema and context key; (revision before, revision now)."""
    try:
        return migrate.migrate(url, root)
    except migrate.MigrationError as error:
        fail(f"the database could not be migrated: {error}")


def refuse_unsafe(url: str, root: RootKey, roles: tuple[str, ...]) -> None:
    """Leave unless each role is as weak as it must be and the schema is this release's (docs/operate/database.md)."""
    problems: list[str] = []
    for role in roles:
        try:
            with psycopg.connect(runtime_conninfo(url, role, root)) as conn:
                problems += lint.boot_problems(conn)
        except psycopg.OperationalError as error:
            problems.append(f"{role} cannot connect: {str(error).strip()}")
    if problems:
        fail("refusing to start:\n" + "\n".join(f"  - {text}" for text in dict.fromkeys(problems)), code=3)


def run(roles: tuple[str, ...], work: Callable[[Database], Awaitable[T]]) -> T:
    """Open a database for the roles, do `work`, close everything. Errors become messages, not tracebacks."""
    config = settings()
    root = root_key(config)
    with postgres(config) as url:
        bring_up_to_date(url, root)

        async def inner() -> T:
            db = Database(address(config, url), root, roles, size=4)
            try:
                await db.open()
                return await work(db)
            finally:
                await db.close()

        try:
            return asyncio.run(inner())
        except DatabaseUnavailable as error:
            fail(f"the database cannot be reached: {error}")
        except psycopg.errors.CheckViolation as error:
            fail(f"refused by the database: {error.diag.message_primary}")


@contextlib.asynccontextmanager
async def operator_tx(db: Database, organization: str) -> AsyncIterator[Tx]:
    """A transaction of one organization, named by slug or id, as an operator."""
    org_id = await find_organization(db, organization)
    async with db.tenant_tx(org_id, "limner_operator") as tx:
        yield tx


async def find_organization(db: Database, organization: str) -> UUID:
    async with db.system_tx("limner_operator", "an operator names an organization") as tx:
        try:
            return (await organizations.get(tx, organization)).org_id
        except organizations.OrganizationNotFound as error:
            fail(str(error))


def actor() -> str:
    """Who runs the command, for the audit log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def is_terminal() -> bool:
    return sys.stdout.isatty()
