"""The ledger's duties, organization by organization: what has ended goes, allowances come, days are closed."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from uuid import UUID

import psycopg

from limner.db.pools import Database, DatabaseUnavailable
from limner.ledger import allowances, books, lots, refusals
from limner.tasks.chores import Chore, Done
from limner.telemetry import logs

EXPIRE_EVERY_S = 60.0
ALLOW_EVERY_S = 3600.0
CLOSE_EVERY_S = 3600.0
LOTS_AT_ONCE = 500
USERS_AT_ONCE = 200
MAX_ROUNDS = 200
"""Of LOTS_AT_ONCE in one organization; what is left then waits for the next minute."""
log = logs.get("chores")

WITH_ENDED = """
SELECT o.org_id FROM limner.organization o
 WHERE EXISTS (SELECT 1 FROM limner.lot l WHERE l.org_id = o.org_id AND l.remaining_mc > 0 AND l.expires_at <= clock_timestamp())
 ORDER BY o.org_id
"""
WITH_ALLOWANCES = """
SELECT o.org_id FROM limner.organization o
 WHERE o.is_active AND (o.monthly_mc > 0 OR EXISTS (SELECT 1 FROM limner.app a WHERE a.org_id = o.org_id AND a.monthly_mc > 0))
 ORDER BY o.org_id
"""
EVERYBODY = "SELECT o.org_id FROM limner.organization o ORDER BY o.org_id"


class LedgerChores:
    """What a worker does for the books. One organization's trouble is logged and does not keep the others waiting."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def all(self) -> list[Chore]:
        return [
            Chore("expire_lots", EXPIRE_EVERY_S, self.expire_lots),
            Chore("grant_allowances", ALLOW_EVERY_S, self.grant_allowances),
            Chore("close_books", CLOSE_EVERY_S, self.close_books),
        ]

    async def expire_lots(self, _: datetime) -> Done:
        """Take what has ended out of the wallets; until then it stands there but cannot be spent."""
        return await self._each(WITH_ENDED, "wallets", self._expire)

    async def grant_allowances(self, _: datetime) -> Done:
        """This month's allowances where they are missing: all of them at the turn of a month, or when one was set."""
        return await self._each(WITH_ALLOWANCES, "granted", self._allow)

    async def close_books(self, since: datetime) -> Done:
        """Close the days that are complete, once after each turn of the day."""
        async with self._db.system_tx("limner_audit", "the duty asks for the day") as tx:
            day = await books.last_complete_day(tx)
            due = await tx.get(
                "SELECT ((%s - interval '10 minutes') AT TIME ZONE 'UTC')::date <= %s AS due", [since, day]
            )
        if not due["due"]:
            return Done({"rows": 0, "failed": 0})

        async def close(org_id: UUID) -> int:
            async with self._db.tenant_tx(org_id, "limner_operator") as tx:
                return await books.close(tx, day)

        return await self._each(EVERYBODY, "rows", close)

    async def _each(self, query: str, counted: str, work: Callable[[UUID], Awaitable[int]]) -> Done:
        async with self._db.system_tx("limner_audit", "the duty goes through all organizations") as tx:
            orgs = [row["org_id"] for row in await tx.all(query)]
        count = 0
        failed = 0
        for org_id in orgs:
            try:
                count += await work(org_id)
            except DatabaseUnavailable:
                raise
            except (psycopg.Error, refusals.Refused) as error:
                failed += 1
                log.warning("chore.postponed", org=org_id, error=str(error))
        return Done({counted: count, "failed": failed}, again=failed > 0)

    async def _expire(self, org_id: UUID) -> int:
        count = 0
        for _ in range(MAX_ROUNDS):
            async with self._db.tenant_tx(org_id, "limner_operator") as tx:
                done = await lots.expire(tx, LOTS_AT_ONCE)
            if done == 0:
                break
            count += done
        return count

    async def _allow(self, org_id: UUID) -> int:
        async with self._db.tenant_tx(org_id, "limner_operator") as tx:
            count = int(await allowances.grant_own(tx))
            apps = await tx.all(
                "SELECT a.id FROM limner.app a WHERE a.org_id = %s AND a.monthly_mc > 0 ORDER BY a.id LIMIT 10000",
                [org_id],
            )
        for app in apps:
            after: UUID | None = allowances.NOBODY
            while after is not None:
                async with self._db.tenant_tx(org_id, "limner_operator") as tx:
                    given = await allowances.grant_to_users(tx, app["id"], after, USERS_AT_ONCE)
                count += given.granted
                after = None if given.short else given.last_id
                if given.short:
                    log.warning("allowances.short", org=org_id, app=app["id"])
        return count
