"""`limner queue`: what waits for whom, and pausing it."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from limner.cli import printing, session
from limner.cli.arguments import Json, read_reason
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import queue
from limner.hub.queue import Line, Served
from limner.tenancy import apps

app = typer.Typer(help="The queue: who waits, who runs; pause, resume, drain.", invoke_without_command=True,
                  add_completion=False, pretty_exceptions_enable=False)  # fmt: skip

WATCH_S = 1.0
DRAIN_LOOK_S = 0.2
COLUMNS = ("organization", "app", "ready", "running", "later", "overdue", "oldest", "weight", "most", "paused since")
PROVIDER_COLUMNS = ("provider", "whose", "running", "most", "full")
OrgOrAll = Annotated[str | None, typer.Option("--org", help="The organization's slug or id; without it everybody.")]
AppOfOrg = Annotated[str | None, typer.Option("--app", help="One app of the organization; without it all of them.")]


@dataclass(frozen=True, slots=True)
class Place:
    """An organization (`app` None), one of its apps, or everybody (`org` None): what waits there, and its share."""

    org: str | None
    app: str | None
    line: Line


@dataclass(frozen=True, slots=True)
class Seen:
    """Everybody's lines, and the providers that have a cap."""

    places: Sequence[Place]
    served: Sequence[Served]


@app.callback()
def status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and look again every second, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Who waits, who runs, and how the workers are shared."""
    if ctx.invoked_subcommand is not None:
        return
    if watch and as_json:
        raise typer.BadParameter("--watch is for people, --json for machines: give one of them")
    if watch:
        session.run(_watch)
        return
    seen = session.run(_look)
    if as_json:
        printing.document(shape(seen))
    else:
        printing.show(_page(seen))


@app.command("pause")
def pause(
    reason: Annotated[
        str, typer.Option("--reason", parser=read_reason, metavar="TEXT", help="Why, for the audit log.")
    ],
    org: OrgOrAll = None,
    app: AppOfOrg = None,
    as_json: Json = False,
) -> None:
    """Give workers nothing more of it. Jobs are still accepted and wait; what runs is finished; cancelling works."""
    _need_org(org, app)

    async def work(db: Database) -> None:
        async with session.operator_tx(db, org) as tx:
            app_id = (await apps.get(tx, app)).id if app else None
            await queue.pause(tx, app_id, actor=session.actor(), reason=reason)

    session.run(work)
    _told(org, app, paused=True, as_json=as_json, words="is paused")


@app.command("resume")
def resume(org: OrgOrAll = None, app: AppOfOrg = None, as_json: Json = False) -> None:
    """Undo a pause of just this organization, app, or everybody. Other pauses stay."""
    _need_org(org, app)

    async def work(db: Database) -> bool:
        async with session.operator_tx(db, org) as tx:
            app_id = (await apps.get(tx, app)).id if app else None
            return await queue.resume(tx, app_id, actor=session.actor())

    was = session.run(work)
    _told(org, app, paused=False, as_json=as_json, words="goes on" if was else "was not paused")


@app.command("drain")
def drain(
    timeout: Annotated[
        int, typer.Option("--timeout", min=1, max=86_400, metavar="S", help="Wait at most this long.")
    ] = 600,
    as_json: Json = False,
) -> None:
    """Pause everybody and wait until nothing runs; exit 1 when something still does. `limner queue resume` undoes it."""

    async def work(db: Database) -> int:
        async with session.operator_tx(db, None) as tx:
            await queue.pause(tx, None, actor=session.actor(), reason="drain")
        until = time.monotonic() + timeout
        while True:
            running = await _running(db)
            if not running or time.monotonic() >= until:
                return running
            await asyncio.sleep(DRAIN_LOOK_S)

    running = session.run(work)
    if as_json:
        printing.document({"drained": running == 0, "running": running})
    if running:
        printing.fail(f"{running} jobs still run after {timeout} s; the queue stays paused: limner queue resume")
    if not as_json:
        printing.say("nothing runs; the queue stays paused until limner queue resume")


def shape(seen: Seen) -> dict[str, Any]:
    """For machines: the sums, then each organization and app, then each provider that has a cap."""
    places = seen.places
    lines = [place.line for place in places if place.app is not None]
    everybody = next((place.line for place in places if place.org is None), None)
    return {
        "ready": sum(line.ready for line in lines),
        "running": sum(line.running for line in lines),
        "deferred": sum(line.deferred for line in lines),
        "overdue": sum(line.overdue for line in lines),
        "oldest_s": round(max((line.oldest_s for line in lines), default=0.0), 1),
        "paused_since": everybody.paused_at if everybody else None,
        "lines": [
            {
                "org": place.org, "app": place.app, "ready": place.line.ready, "running": place.line.running,
                "deferred": place.line.deferred, "overdue": place.line.overdue, "oldest_s": round(place.line.oldest_s, 1),
                "weight": place.line.weight, "max_running": place.line.max_running, "paused_since": place.line.paused_at,
            }
            for place in places if place.org is not None
        ],
        "providers": [
            {
                "provider": one.name, "org": one.slug, "running": one.running, "max_running": one.max_running,
                "full": one.is_full, "enabled": one.is_enabled,
            }
            for one in seen.served
        ],
    }  # fmt: skip


async def _look(db: Database) -> Seen:
    """Every organization in line with its apps below it; everybody first, where everybody is paused."""
    async with db.system_tx("limner_operator", "an operator looks at everybody's lines") as tx:
        lines = await queue.list_lines(tx)
        served = await queue.list_capped(tx)
    by_org: dict[UUID, list[Line]] = defaultdict(list)
    for line in lines:
        by_org[line.org_id].append(line)
    places = [Place(None, None, line) for line in by_org.pop(PLATFORM, [])]
    for org_id, its_lines in by_org.items():
        async with db.tenant_tx(org_id, "limner_operator") as tx:
            slugs = {one.id: one.slug for one in await apps.list_all(tx)}
        places.append(Place(its_lines[0].slug, None, _whole(org_id, its_lines)))
        places += [
            Place(line.slug, slugs.get(line.app_id, str(line.app_id)), line)
            for line in its_lines
            if line.app_id != org_id
        ]
    return Seen(places, served)


def _whole(org_id: UUID, lines: Sequence[Line]) -> Line:
    """An organization: its apps' sums beside its own share."""
    own = next((line for line in lines if line.app_id == org_id), None)
    return Line(
        lines[0].slug, org_id, org_id, sum(x.ready for x in lines), sum(x.running for x in lines),
        sum(x.deferred for x in lines), sum(x.overdue for x in lines), max(x.oldest_s for x in lines),
        own.weight if own else 1, own.max_running if own else None, own.paused_at if own else None,
    )  # fmt: skip


def _page(seen: Seen) -> Group:
    """The sums in a line, a table, and one of the providers with a cap."""
    sums = shape(seen)
    words = (
        f"{sums['ready']} ready, {sums['running']} running, {sums['deferred']} for later, {sums['overdue']} overdue,"
        f" oldest {sums['oldest_s']:.0f} s"
    )
    parts: list[Any] = [Text(words)]
    if sums["paused_since"] is not None:
        parts.append(Text(f"everybody is paused since {printing.when(sums['paused_since'])}", style="yellow"))
    rows = [
        (
            place.org if place.app is None else "", place.app or "", place.line.ready, place.line.running,
            place.line.deferred, place.line.overdue, f"{place.line.oldest_s:.0f} s", place.line.weight,
            place.line.max_running, place.line.paused_at,
        )
        for place in seen.places if place.org is not None
    ]  # fmt: skip
    if rows:
        parts.append(printing.grid(COLUMNS, rows))
    if seen.served:
        providers = [(x.name, x.slug or "platform", x.running, x.max_running, x.is_full) for x in seen.served]
        parts.append(printing.grid(PROVIDER_COLUMNS, providers))
    return Group(*parts)


async def _watch(db: Database) -> None:
    with Live(_page(await _look(db)), console=printing.console(), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(WATCH_S)
            live.update(_page(await _look(db)), refresh=True)


async def _running(db: Database) -> int:
    async with db.system_tx("limner_operator", "an operator waits for everybody's runs") as tx:
        return await queue.count_running(tx)


def _need_org(org: str | None, of_org: str | None) -> None:
    if of_org is not None and org is None:
        raise typer.BadParameter("an app is named together with its organization: give --org too")


def _told(org: str | None, of_org: str | None, *, paused: bool, as_json: bool, words: str) -> None:
    if as_json:
        printing.document({"org": org, "app": of_org, "paused": paused})
    else:
        printing.say(f"{f'app {of_org} of {org}' if of_org else org or 'everybody'} {words}")
