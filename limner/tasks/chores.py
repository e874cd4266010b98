"""Periodic duties: whichever worker comes first after a duty is due does it, the others pass.

A duty is claimed by moving its next time in one statement (a claim that dies is claimed again one period later),
so no lock is held while it works. Each has a task of its own: a long one does not keep the others waiting.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from limner.db.pools import Database, DatabaseUnavailable
from limner.telemetry import logs

ROLE = "limner_dispatch"
TICK_S = 1.0
log = logs.get("chores")


@dataclass(frozen=True, slots=True)
class Done:
    """What a duty found, for the record; `again`: the same span must be looked at once more next time."""

    facts: dict[str, Any]
    again: bool = False


Work = Callable[[datetime], Awaitable[Done]]
"""Gets the moment up to which it was done before."""


@dataclass(frozen=True, slots=True)
class Chore:
    """A duty and its period in seconds."""

    name: str
    every_s: float
    work: Work


async def run_forever(db: Database, chores: Sequence[Chore]) -> None:
    """Do what is due until cancelled. A duty that fails is logged and tried next time."""
    await asyncio.gather(*(_repeat(db, chore) for chore in chores))


async def do_if_due(db: Database, chore: Chore) -> bool:
    """Do one duty unless it is not due, or another worker does it already; whether it was done."""
    async with db.system_tx(ROLE, "duties are installation-wide") as tx:
        await tx.execute("INSERT INTO limner.chore (name) VALUES (%s) ON CONFLICT DO NOTHING", [chore.name])
        due = await tx.find(
            "UPDATE limner.chore SET next_at = clock_timestamp() + make_interval(secs => %(every)s)"
            " WHERE name = %(name)s AND next_at <= clock_timestamp() RETURNING watermark, clock_timestamp() AS now",
            {"name": chore.name, "every": chore.every_s},
        )
    if due is None:
        return False
    done = await chore.work(due["watermark"])
    async with db.system_tx(ROLE, "duties are installation-wide") as tx:
        await tx.execute(
            "UPDATE limner.chore SET done_at = clock_timestamp(), watermark = %s, result = %s WHERE name = %s",
            [due["watermark"] if done.again else due["now"], Jsonb(done.facts), chore.name],
        )
    return True


async def organizations(db: Database) -> list[UUID]:
    """All there are, for duties that go through them in turn."""
    async with db.system_tx("limner_operator", "the duty goes through all organizations") as tx:
        rows = await tx.all("SELECT org_id FROM limner.organization ORDER BY org_id")
    return [row["org_id"] for row in rows]


async def last_results(db: Database, role: str = "limner_api") -> dict[str, dict[str, Any]]:
    """What each duty found last, by name."""
    async with db.system_tx(role, "duties are installation-wide") as tx:
        rows = await tx.all("SELECT name, result, done_at FROM limner.chore ORDER BY name LIMIT 100")
    return {row["name"]: row["result"] | {"done_at": row["done_at"]} for row in rows}


async def _repeat(db: Database, chore: Chore) -> None:
    while True:
        try:
            await do_if_due(db, chore)
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.warning("chore.postponed", chore=chore.name, error=str(error))
        except Exception:
            log.exception("chore.failed", chore=chore.name)
        await asyncio.sleep(TICK_S)
