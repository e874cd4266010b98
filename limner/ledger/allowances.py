"""Monthly allowances: credits that come at the turn of the month (UTC) and end with it, once a month for each wallet.

End users' are the app's `monthly_mc` and are paid for as grants are; the organization's own are issued.
"""

from dataclasses import dataclass
from uuid import UUID

from limner.db.tx import Tx

NOBODY = UUID(int=0)
"""Before the first end user."""


@dataclass(frozen=True, slots=True)
class Given:
    """`last_id`: where to go on, None at the end; `short`: the organization's wallet or cap was used up there."""

    last_id: UUID | None
    granted: int
    short: bool


async def grant_to_users(tx: Tx, app_id: UUID, after: UUID, limit: int) -> Given:
    """This month's allowance for up to `limit` of an app's end users behind `after`, where they have none yet."""
    row = await tx.get("SELECT * FROM limner.grant_allowances(%s, %s, %s, %s)", [tx.ctx, app_id, after, limit])
    return Given(row["last_id"], row["granted"], row["short"])


async def grant_own(tx: Tx) -> bool:
    """The organization's own allowance of this month; whether it was given now."""
    row = await tx.get("SELECT limner.grant_own_allowance(%s) AS given", [tx.ctx])
    return bool(row["given"])
