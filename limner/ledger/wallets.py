"""Wallets: what an end user, or the organization itself, can spend and has on hold. All amounts are milli-credits."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import psycopg

from limner.db.tx import Tx
from limner.kit import ids
from limner.ledger import refusals

Kind = Literal["grant", "bonus"]


class WalletNotFound(LookupError):
    """No wallet has this id."""


@dataclass(frozen=True, slots=True)
class Wallet:
    """`available_mc` leaves out what has ended, swept or not. Counts of jobs stand here because submit and finish write this row."""

    id: UUID
    owner: str
    available_mc: int
    held_mc: int
    owed_mc: int
    jobs_submitted: int
    jobs_succeeded: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What a movement did: `available_mc` is the balance right after it, also when it is a replay.

    `repaid_mc`: what a debt of the wallet took of a grant at once.
    """

    replayed: bool
    transfer_id: UUID
    amount_mc: int
    available_mc: int
    repaid_mc: int = 0


async def get(tx: Tx, wallet_id: UUID) -> Wallet:
    """Raises WalletNotFound."""
    row = await tx.find(
        "SELECT w.id, w.owner, limner.spendable_mc(w) AS available_mc, w.held_mc, w.owed_mc, w.jobs_submitted, w.jobs_succeeded"
        " FROM limner.wallet w WHERE w.org_id = %s AND w.id = %s",
        [tx.org_id, wallet_id],
    )
    if row is None:
        raise WalletNotFound(str(wallet_id))
    return Wallet(**row)


async def grant(
    tx: Tx,
    app_id: UUID,
    external_id: str,
    amount_mc: int,
    reason: str,
    *,
    ref: str | None,
    request_hash: bytes | None,
    kind: Kind = "grant",
    expires_at: datetime | None = None,
) -> Grant:
    """Give an app's end user credits, making the user (and its welcome grant) if new. They end at `expires_at`, if ever.

    With a `ref`, a second grant of the same ref and hash is a replay. Raises refusals.TooFewCredits (the
    organization's wallet or exposure cap), refusals.Inactive, refusals.Reused, refusals.BadAmount, refusals.BadExpiry.
    """
    transfer_id = ids.new()
    try:
        row = await tx.get(
            "SELECT * FROM limner.grant_credits(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                tx.ctx,
                app_id,
                external_id,
                ids.new(),
                transfer_id,
                kind,
                amount_mc,
                expires_at,
                reason,
                ref,
                request_hash,
            ],
        )
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return Grant(row["outcome"] == "replayed", row["transfer_id"], amount_mc, row["available_mc"], row["repaid_mc"])


async def top_up(
    tx: Tx, amount_mc: int, reason: str, *, ref: str, kind: Kind = "grant", expires_at: datetime | None = None
) -> Grant:
    """Issue credits to the organization's own wallet, as an operator. Raises refusals.Reused, refusals.BadAmount, refusals.BadExpiry."""
    transfer_id = ids.new()
    try:
        row = await tx.get(
            "SELECT * FROM limner.top_up(%s, %s, %s, %s, %s, %s, %s)",
            [tx.ctx, transfer_id, kind, amount_mc, expires_at, reason, ref],
        )
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return Grant(row["outcome"] == "replayed", row["transfer_id"], amount_mc, row["available_mc"])


async def refund(tx: Tx, job_id: UUID, amount_mc: int, reason: str, *, ref: str) -> Grant:
    """Give back part or all of what a job was charged. Raises refusals.Absent, refusals.BadAmount, refusals.Reused."""
    transfer_id = ids.new()
    try:
        row = await tx.get(
            "SELECT * FROM limner.refund_job(%s, %s, %s, %s, %s, %s)",
            [tx.ctx, job_id, transfer_id, amount_mc, reason, ref],
        )
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return Grant(row["outcome"] == "replayed", row["transfer_id"], amount_mc, row["available_mc"])
