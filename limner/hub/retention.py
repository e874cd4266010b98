"""How long inputs and outputs of closed jobs are kept: a duty that erases what is older, objects first.

Ledger, usage, receipt and the job's own row stay: what was ordered and delivered goes, what it cost does not.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from limner.db.pools import Database
from limner.db.tx import Row, Tx
from limner.hub import outputs
from limner.media.store import ObjectStore, StoreUnavailable
from limner.tasks.chores import Done, organizations
from limner.telemetry import logs

ERASE_EVERY_S = 3600.0
BATCH = 500
SETTLED_S = 600
"""A job's id is made before its commit: below ids this old no job can appear any more."""
log = logs.get("retention")

DUE = """
SELECT j.id, j.started_at IS NOT NULL AS ran,
       j.finished_at IS NOT NULL AND j.created_at < clock_timestamp() - make_interval(secs => %(settled)s)
       AND (j.finished_at < clock_timestamp() - make_interval(days => %(days)s) OR j.id <= %(beyond)s) AS due
  FROM limner.job j WHERE j.org_id = %(org)s AND j.app_id = %(app)s AND j.id > %(after)s ORDER BY j.id LIMIT %(limit)s
"""
BEYOND = """
SELECT j.id FROM limner.job j WHERE j.org_id = %(org)s AND j.app_id = %(app)s AND j.id > %(after)s AND j.finished_at IS NOT NULL
 ORDER BY j.id DESC OFFSET %(keep)s LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class _App:
    """`days`, `jobs`: None is for ever, all of them."""

    org_id: UUID
    id: UUID
    days: int | None
    jobs: int | None
    erased_to: UUID


class Retention:
    """`keep_days`, `keep_jobs`: for apps that have none of their own; 0 is for ever, all of them."""

    def __init__(self, db: Database, store: ObjectStore, keep_days: int, keep_jobs: int) -> None:
        self._db = db
        self._store = store
        self._keep_days = keep_days or None
        self._keep_jobs = keep_jobs or None

    async def erase_old(self, _: datetime) -> Done:
        """Every app of every organization in turn. Where the store fails, an app's rest waits for the next time."""
        erased = 0
        failed = 0
        for org_id in await organizations(self._db):
            for app in await self._apps(org_id):
                try:
                    erased += await self._erase_app(app)
                except StoreUnavailable as error:
                    failed += 1
                    log.warning("erase.postponed", org=org_id, app=app.id, error=str(error))
        return Done({"erased": erased, "failed": failed})

    async def _apps(self, org_id: UUID) -> list[_App]:
        """The organization's apps that do not keep everything."""
        query = "SELECT a.id, a.keep_days, a.keep_jobs, a.erased_to FROM limner.app a WHERE a.org_id = %s ORDER BY a.id"
        async with self._db.tenant_tx(org_id, "limner_worker") as tx:
            rows = await tx.all(query, [org_id])
        found = [
            _App(
                org_id, row["id"], self._keep_days if row["keep_days"] is None else row["keep_days"],
                self._keep_jobs if row["keep_jobs"] is None else row["keep_jobs"], row["erased_to"],
            )
            for row in rows
        ]  # fmt: skip
        return [app for app in found if app.days is not None or app.jobs is not None]

    async def _erase_app(self, app: _App) -> int:
        """Upwards from where it stopped last, to the first job that is still open or young enough."""
        erased = 0
        after = app.erased_to
        async with self._db.tenant_tx(app.org_id, "limner_worker") as tx:
            beyond = await _beyond(tx, app)
        while True:
            facts = {"org": app.org_id, "app": app.id, "after": after, "days": app.days, "beyond": beyond, "limit": BATCH,
                     "settled": SETTLED_S}  # fmt: skip
            async with self._db.tenant_tx(app.org_id, "limner_worker") as tx:
                rows = await tx.all(DUE, facts)
            stop = next((place for place, row in enumerate(rows) if not row["due"]), len(rows))
            erased += await self._erase(app, rows[:stop])
            if stop < BATCH:
                return erased
            after = rows[-1]["id"]

    async def _erase(self, app: _App, rows: list[Row]) -> int:
        """Objects, then rows: of a job whose row is erased no object is left. Raises StoreUnavailable after what went well."""
        gone: list[UUID] = []
        try:
            for row in rows:
                if row["ran"]:
                    await self._store.delete(await self._store.list_keys(outputs.prefix(app.org_id, row["id"])))
                gone.append(row["id"])
        finally:
            erased = await self._forget(app, gone) if gone else 0
        return erased

    async def _forget(self, app: _App, job_ids: list[UUID]) -> int:
        async with self._db.tenant_single(app.org_id, "limner_worker") as tx:
            row = await tx.get("SELECT limner.erase_jobs(%s, %s, %s::uuid[]) AS erased", [tx.ctx, app.id, job_ids])
        return int(row["erased"])


async def _beyond(tx: Tx, app: _App) -> UUID | None:
    """The newest closed job of those that are too many to keep."""
    if app.jobs is None:
        return None
    row = await tx.find(BEYOND, {"org": app.org_id, "app": app.id, "after": app.erased_to, "keep": app.jobs})
    return row["id"] if row else None
