"""Lots: credits that end. What a wallet holds beside its lots never ends and is spent last."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from limner.db.tx import Tx


@dataclass(frozen=True, slots=True)
class Lot:
    """`kind`: how the credits came (grant, bonus, adjustment, allowance, refund)."""

    id: UUID
    kind: str
    granted_mc: int
    remaining_mc: int
    expires_at: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Ending:
    """What of a wallet ends at one moment if it is not spent before."""

    amount_mc: int
    expires_at: datetime


OPEN = "l.org_id = %s AND l.wallet_id = %s AND l.remaining_mc > 0 AND l.expires_at > clock_timestamp()"


async def list_open(tx: Tx, wallet_id: UUID, limit: int = 100) -> list[Lot]:
    """A wallet's lots that something can still be spent of, in the order they are spent in."""
    rows = await tx.all(
        "SELECT l.id, l.kind, l.granted_mc, l.remaining_mc, l.expires_at, l.created_at FROM limner.lot l"
        f" WHERE {OPEN} ORDER BY l.expires_at, l.id LIMIT %s",
        [tx.org_id, wallet_id, limit],
    )
    return [Lot(**row) for row in rows]


async def list_endings(tx: Tx, wallet_id: UUID, limit: int = 20) -> list[Ending]:
    """The next moments at which something of a wallet ends, soonest first."""
    rows = await tx.all(
        "SELECT sum(l.remaining_mc)::bigint AS amount_mc, l.expires_at FROM limner.lot l"
        f" WHERE {OPEN} GROUP BY l.expires_at ORDER BY l.expires_at LIMIT %s",
        [tx.org_id, wallet_id, limit],
    )
    return [Ending(**row) for row in rows]


async def expire(tx: Tx, limit: int) -> int:
    """Take what has ended in up to `limit` lots out of their wallets; in how many wallets. One in use is passed over."""
    row = await tx.get("SELECT limner.expire_lots(%s, %s) AS wallets", [tx.ctx, limit])
    return int(row["wallets"])
