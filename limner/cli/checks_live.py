"""The doctor's checks of what moves: the database, the store, the decoder, the port, the worker, the books."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import typer

from limner.cli import demo_picture, listening, session, supervisor
from limner.cli.checks import Check, CheckFailed, try_one
from limner.db import lint, revisions, roles
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.db.tx import Tx
from limner.egress import probe
from limner.hub import queue
from limner.kit.crypto import RootKey
from limner.ledger import invariants
from limner.media.store import ObjectMissing, ObjectStore
from limner.settings import Settings, load_root_key

BOOKS_S = 180.0  # a worker looks every minute
WAIT_S = 60.0
RECENT = timedelta(days=1)


def store(config: Settings) -> str:
    """Put, read and delete a small object."""

    async def work() -> None:
        objects = ObjectStore(config.store_url, config.home)
        key, data = f"doctor/{uuid4()}", b"limner doctor"
        await objects.put(key, data, "application/octet-stream")
        if await objects.read(key) != data:
            raise CheckFailed("an object came back changed", "look at what stands between limner and the store")
        await objects.delete([key])
        try:
            await objects.read(key)
        except ObjectMissing:
            return
        raise CheckFailed("an object stayed after its deletion", "let limner's credentials delete objects")

    where = config.store_url or str(config.home / "objects")
    try:
        asyncio.run(work())
    except CheckFailed:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise CheckFailed(f"{where}: {words}", "correct LIMNER_STORE_URL, its credentials or permissions") from None
    return f"{where}: put, read, deleted"


def decoder(config: Settings) -> str:
    """A CPU child decodes the demo's picture."""

    async def work() -> demo_picture.Picture:
        return await demo_picture.read(None, config)

    try:
        facts = asyncio.run(work()).facts
    except demo_picture.PictureRefused as error:
        raise CheckFailed(
            str(error), "install pyvips[binary] again; LIMNER_CPU_MEMORY_BYTES may be too small"
        ) from None
    return f"a child process reads the demo picture ({facts.width} × {facts.height})"


def port(config: Settings) -> str:
    """Free, or answered by limner."""
    if config.port == 0:
        return "any free one"
    facts = supervisor.find_running(config.home, supervisor.StopRequest())
    url = facts.local_url if facts else listening.local_url(config.host, config.port)
    health = probe.health(url)
    if health is not None and health["status"] == "ok":
        return f"{url} is answered by limner {health['version']}"
    if health is not None:
        raise CheckFailed(f"{url} is answered by a limner whose database is away", "see the database's log")
    try:
        listening.try_listen(config.host, config.port).close()
    except OSError as error:
        raise CheckFailed(
            f"port {config.port} of {config.host}: {error.strerror or error}, and no limner answers there",
            "choose another with LIMNER_PORT, or stop the program that has it",
        ) from None
    return f"{config.port} is free"


def database(config: Settings) -> list[Check]:
    """Everything about the database, which is attached to or started for this."""
    results: list[Check] = []
    try:
        with session.postgres(config) as url:
            root = load_root_key(config)
            results.append(try_one("database", lambda: _reach(url)))
            if not results[-1].ok:
                return results
            results.append(try_one("schema", lambda: _schema(config, url, root)))
            if results[-1].ok:
                results += [
                    try_one("roles", lambda: _roles(url, root)),
                    try_one("isolation lint", lambda: _lint(url)),
                    try_one("worker", lambda: asyncio.run(_worker(config, url, root))),
                    _queue(config, url, root),
                    try_one("books", lambda: asyncio.run(_books(config, url, root))),
                ]
    except typer.Exit:  # session.postgres has said why on standard error
        log = config.home / "log" / "postgres.log"
        results.append(Check("database", False, "the embedded database cannot be started", f"see above, and {log}"))
    return results


def _reach(url: str) -> str:
    try:
        with psycopg.connect(url, connect_timeout=5) as conn:
            version = conn.info.server_version
    except psycopg.OperationalError as error:
        raise CheckFailed(" ".join(str(error).split()), "start it, or correct LIMNER_DATABASE_URL") from None
    if version < revisions.FLOOR_VERSION:
        raise CheckFailed(f"PostgreSQL {version // 10_000} is too old", "upgrade the server to 15 or newer")
    return f"PostgreSQL {version // 10_000}.{version % 10_000}"


def _schema(config: Settings, url: str, root: RootKey) -> str:
    try:
        before = session.behind(url)
        session.bring_up_to_date(config, url, root)
    except typer.Exit:
        raise CheckFailed("not this release's", "run limner db migrate (the reason stands above)") from None
    return f"{revisions.head()}, this release's{' (brought there just now)' if before else ''}"


def _roles(url: str, root: RootKey) -> str:
    if problems := session.role_problems(url, root, roles.RUNTIME):
        raise CheckFailed("; ".join(problems), "run limner db migrate; see docs/operate/database.md")
    return f"{len(roles.RUNTIME)} run-time roles, each as weak as it must be"


def _lint(url: str) -> str:
    with psycopg.connect(url) as conn:
        found = lint.findings(conn)
    if found:
        rule, name = found[0]
        raise CheckFailed(f"{len(found)} findings, for example {rule}: {name}", "run limner db lint")
    return "no finding"


async def _worker(config: Settings, url: str, root: RootKey) -> str:
    """Somebody works when there is work, and the books are looked at while limner is up."""
    async with _system(config, url, root, "limner_operator", "the doctor looks at the queue") as tx:
        queue = await tx.get("SELECT * FROM limner.queue_facts()")
        books = await tx.find(
            "SELECT extract(epoch FROM clock_timestamp() - done_at)::float8 AS age_s FROM limner.chore"
            " WHERE name = 'check_books'"
        )
    age_s = books["age_s"] if books else None
    alive = age_s is not None and age_s < BOOKS_S
    waiting = f"{queue['depth']} waiting, {queue['running']} running, oldest {queue['oldest_s']:.0f} s"
    if queue["overdue"]:
        raise CheckFailed(f"{queue['overdue']} jobs are past their deadline", "start limner worker")
    if queue["depth"] and queue["oldest_s"] > WAIT_S and not alive:
        raise CheckFailed(f"nobody works: {waiting}", "start limner worker, or limner up")
    if alive:
        return f"a worker was here {age_s:.0f} s ago; {waiting}"
    facts = supervisor.find_running(config.home, supervisor.StopRequest())
    if facts is not None and age_s is not None:
        raise CheckFailed(
            f"limner is up, but no worker has looked at the books for {age_s:.0f} s",
            f"see {config.home / 'log'}/worker-*.log",
        )
    return f"none is needed; {waiting}"


def _queue(config: Settings, url: str, root: RootKey) -> Check:
    """Nobody forgot a pause: meant or not, it is worth a line."""

    async def look() -> list[queue.Line]:
        async with _system(config, url, root, "limner_operator", "the doctor looks for pauses") as tx:
            return [line for line in await queue.list_lines(tx) if line.paused_at is not None]

    def found() -> str:
        paused.extend(asyncio.run(look()))
        if not paused:
            return "nobody is paused"
        names = [
            "everybody" if x.org_id == PLATFORM else x.slug if x.app_id == x.org_id else f"an app of {x.slug}"
            for x in paused
        ]
        return f"paused: {', '.join(str(name) for name in names[:5])}{' and more' if len(names) > 5 else ''}"

    paused: list[queue.Line] = []
    check = try_one("queue", found)
    return replace(check, fix="limner queue shows since when; limner queue resume ends it") if paused else check


async def _books(config: Settings, url: str, root: RootKey) -> str:
    async with _system(config, url, root, "limner_audit", "the doctor checks the books of the last day") as tx:
        since: Any = (await tx.get("SELECT clock_timestamp() AS now"))["now"] - RECENT
        violations, checked, example = await invariants.check_changes(tx, since)
    if violations:
        raise CheckFailed(f"{violations} violations, for example {example}", "run limner invariants, and stop selling")
    return f"{checked} wallets and jobs of the last day, no violation"


@asynccontextmanager
async def _system(config: Settings, url: str, root: RootKey, role: str, reason: str) -> AsyncIterator[Tx]:
    db = Database(session.address(config, url), root, (role,), size=1)
    try:
        await db.open()
        async with db.system_tx(role, reason) as tx:
            yield tx
    finally:
        await db.close()
