"""What commands share: settings, the root key, a database that is attached to or started for the command's duration."""

import asyncio
import contextlib
import getpass
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar
from uuid import UUID

import psycopg
from pydantic import ValidationError
from pydantic_settings import SettingsError as UnreadableSettings

from limner.cli.printing import fail
from limner.db import lint, revisions
from limner.db.context import PLATFORM
from limner.db.embedded import EmbeddedError, EmbeddedPostgres
from limner.db.pools import Address, Database, DatabaseUnavailable, runtime_conninfo
from limner.db.tx import Tx
from limner.kit import money
from limner.kit.crypto import RootKey
from limner.ledger import refusals
from limner.settings import Settings, SettingsError, load_root_key
from limner.tenancy import organizations

T = TypeVar("T")
OPERATOR = ("limner_operator",)


def settings() -> Settings:
    """The settings, or an explanation of what is wrong with them."""
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(f"LIMNER_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        fail(f"settings: {problems}")
    except (UnreadableSettings, OSError) as error:
        fail(f"settings: {error}")


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
        except (EmbeddedError, OSError) as error:
            fail(f"the embedded database cannot be started: {error}")
        except psycopg.OperationalError as error:
            fail(f"the embedded database does not let limner in: {_one_line(error)}")
        yield url


def address(config: Settings, url: str) -> Address:
    return Address(url, config.database_pool_url, config.database_prepare)


def bring_up_to_date(config: Settings, url: str, root: RootKey, roles: tuple[str, ...] = OPERATOR) -> None:
    """Leave unless the schema is this release's and the roles can log in; an embedded database is brought so far.

    A database of somebody's own is never migrated in passing, and none gets another root key that way: that would
    lock out whoever runs with the right one. The migration runs in a process of its own: it is rare, and nothing else
    of limner needs Alembic in memory.
    """
    problem = behind(url)
    if problem is None:
        refuse_strangers(url, root, roles)
        return
    if not config.embedded:
        fail(f"{problem}; run limner db migrate")
    done = subprocess.run(
        [sys.executable, "-m", "limner", "db", "migrate"],
        env=os.environ | {"LIMNER_HOME": str(config.home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C is for the command that waits here
    )
    if done.returncode != 0:
        fail(f"{problem}; migrating failed: {done.stderr.strip().removeprefix('error: ')}")


def behind(url: str) -> str | None:
    """How the schema differs from this release's, or None. Leaves when it is newer, or the server cannot be reached."""
    needed = revisions.head()
    try:
        with psycopg.connect(url, connect_timeout=5) as conn:
            found = revisions.current(conn)
    except psycopg.OperationalError as error:
        fail(f"the database cannot be reached: {_one_line(error)}")
    if found is not None and found > needed:
        fail(f"the schema is at {found}, newer than this release's {needed}: install a newer limner")
    if found != needed:
        return f"the schema is at {found or 'nothing'}, this release needs {needed}"
    return None


def refuse_strangers(url: str, root: RootKey, roles: tuple[str, ...]) -> None:
    """Leave when a role cannot log in: a pool would only wait and say less."""
    for role in roles:
        try:
            psycopg.connect(runtime_conninfo(url, role, root)).close()
        except psycopg.OperationalError as error:
            if "authentication" in str(error):
                fail(f"{role} cannot log in: the root key is not the one of the last migration; put that one back, or run"
                     " limner db migrate to make this one the database's")  # fmt: skip
            fail(f"{role} cannot connect: {_one_line(error)}")


def refuse_unsafe(url: str, root: RootKey, roles: tuple[str, ...]) -> None:
    """Leave unless each role is as weak as it must be and the schema is this release's (docs/operate/database.md)."""
    problems = role_problems(url, root, roles)
    if problems:
        fail("refusing to start:\n" + "\n".join(f"  - {text}" for text in problems), code=3)


def role_problems(url: str, root: RootKey, roles: tuple[str, ...]) -> list[str]:
    """What the boot check says about each role, each thing once."""
    problems: list[str] = []
    for role in roles:
        try:
            with psycopg.connect(runtime_conninfo(url, role, root)) as conn:
                problems += lint.boot_problems(conn)
        except psycopg.OperationalError as error:
            problems.append(f"{role} cannot connect: {_one_line(error)}")
    return list(dict.fromkeys(problems))


def run(work: Callable[[Database], Awaitable[T]], roles: tuple[str, ...] = OPERATOR) -> T:
    """Open a database for the roles, do `work`, close everything. Refusals become messages, not tracebacks."""
    config = settings()
    root = root_key(config)
    with postgres(config) as url:
        bring_up_to_date(config, url, root, roles)
        try:
            return asyncio.run(_with_database(Database(address(config, url), root, roles, size=2), work))
        except DatabaseUnavailable as error:
            fail(f"the database cannot be reached: {_one_line(error)}")
        except (psycopg.IntegrityError, psycopg.DataError, psycopg.OperationalError) as error:
            fail(f"refused by the database: {error.diag.message_primary or _one_line(error)}")
        except Exception as error:
            if not type(error).__module__.startswith("limner."):
                raise  # a defect: its traceback is what helps
            fail(_words(error))


async def _with_database(db: Database, work: Callable[[Database], Awaitable[T]]) -> T:
    try:
        await db.open()
        return await work(db)
    finally:
        await db.close()


@contextlib.asynccontextmanager
async def operator_tx(db: Database, organization: str | None) -> AsyncIterator[Tx]:
    """A transaction of one organization, named by slug or id, as an operator; None: of the platform's catalog."""
    org_id = PLATFORM if organization is None else await find_organization(db, organization)
    async with db.tenant_tx(org_id, "limner_operator") as tx:
        yield tx


async def find_organization(db: Database, organization: str) -> UUID:
    """Raises organizations.OrganizationNotFound."""
    async with db.system_tx("limner_operator", "an operator names an organization") as tx:
        return (await organizations.get(tx, organization)).org_id


def actor() -> str:
    """Who runs the command, for the audit log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _words(refusal: Exception) -> str:
    if isinstance(refusal, refusals.TooFewCredits):
        has, needs = money.exact(refusal.balance_mc), money.exact(refusal.required_mc)
        return f"{refusal}: {has} credits are there, {needs} are needed"
    return _one_line(refusal)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
