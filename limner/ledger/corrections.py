"""What an operator puts right in a wallet: adjustments up and down, and credits taken back."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg

from limner.db.tx import Tx
from limner.kit import ids
from limner.ledger import refusals
from limner.ledger.wallets import Grant


@dataclass(frozen=True, slots=True)
class Clawback:
    """What was taken at once, and what could not be and is owed; `available_mc` is the balance right after it."""

    replayed: bool
    transfer_id: UUID
    available_mc: int
    taken_mc: int
    owed_mc: int


async def adjust(
    tx: Tx, wallet_id: UUID, amount_mc: int, reason: str, *, ref: str, expires_at: datetime | None = None
) -> Grant:
    """Add credits (`amount_mc` above 0, which may end) or take some that are there (below 0).

    Raises refusals.Absent, refusals.TooFewCredits, refusals.Reused, refusals.BadAmount, refusals.BadExpiry.
    """
    try:
        row = await tx.get(
            "SELECT * FROM limner.adjust_credits(%s, %s, %s, %s, %s, %s, %s)",
            [tx.ctx, wallet_id, ids.new(), amount_mc, expires_at, reason, ref],
        )
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return Grant(row["outcome"] == "replayed", row["transfer_id"], amount_mc, row["available_mc"])


async def claw_back(tx: Tx, wallet_id: UUID, amount_mc: int, reason: str, *, ref: str) -> Clawback:
    """Take back what should not have been given: what is there now, the rest as a debt that refuses new jobs.

    Raises refusals.Absent, refusals.Reused, refusals.BadAmount.
    """
    try:
        row = await tx.get(
            "SELECT * FROM limner.claw_back(%s, %s, %s, %s, %s, %s)",
            [tx.ctx, wallet_id, ids.new(), amount_mc, reason, ref],
        )
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return Clawback(
        row["outcome"] == "replayed", row["transfer_id"], row["available_mc"], row["taken_mc"], row["owed_mc"]
    )
