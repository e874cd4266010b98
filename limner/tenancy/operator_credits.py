"""What an operator does to money by hand: the ledger's verbs, each with its audit row in the same commit.

References are the operator's own words under a prefix, so that none can be mistaken for an API client's key.
"""

from datetime import datetime
from uuid import UUID

from limner.db.tx import Tx
from limner.kit import crypto
from limner.ledger import corrections, wallets
from limner.tenancy import audit
from limner.tenancy.apps import App

PREFIX = "operator:"


async def top_up(
    tx: Tx, amount_mc: int, reason: str, *, ref: str, actor: str, kind: wallets.Kind = "grant",
    expires_at: datetime | None = None,
) -> wallets.Grant:  # fmt: skip
    """Issue credits to the organization's own wallet. Raises as `wallets.top_up`."""
    done = await wallets.top_up(tx, amount_mc, reason, ref=PREFIX + ref, kind=kind, expires_at=expires_at)
    await _record(tx, "wallet.topped_up", "organization", tx.org_id, actor, done, reason)
    return done


async def grant(
    tx: Tx, app: App, external_id: str, amount_mc: int, reason: str, *, ref: str, actor: str, kind: wallets.Kind = "grant",
    expires_at: datetime | None = None,
) -> wallets.Grant:  # fmt: skip
    """Give an end user credits, making the user if new; the same ref with another amount is refused.

    Raises as `wallets.grant`.
    """
    done = await wallets.grant(
        tx, app.id, external_id, amount_mc, reason, ref=f"{PREFIX}{app.id}:{external_id}:{ref}",
        request_hash=crypto.sha256(f"{amount_mc} {kind} {expires_at}".encode()), kind=kind, expires_at=expires_at,
    )  # fmt: skip
    await _record(tx, "end_user.granted", "end_user", external_id, actor, done, reason)
    return done


async def adjust(
    tx: Tx, wallet_id: UUID, amount_mc: int, reason: str, *, ref: str, actor: str, expires_at: datetime | None = None
) -> wallets.Grant:
    """Correct a wallet, up or down. Raises as `corrections.adjust`."""
    done = await corrections.adjust(tx, wallet_id, amount_mc, reason, ref=PREFIX + ref, expires_at=expires_at)
    await _record(tx, "wallet.adjusted", "wallet", wallet_id, actor, done, reason)
    return done


async def claw_back(
    tx: Tx, wallet_id: UUID, amount_mc: int, reason: str, *, ref: str, actor: str
) -> corrections.Clawback:
    """Take credits back, what is not there as a debt. Raises as `corrections.claw_back`."""
    done = await corrections.claw_back(tx, wallet_id, amount_mc, reason, ref=PREFIX + ref)
    if not done.replayed:
        facts = {
            "taken_mc": done.taken_mc,
            "owed_mc": done.owed_mc,
            "transfer": str(done.transfer_id),
            "reason": reason,
        }
        await audit.record(tx, "wallet.clawed_back", "wallet", wallet_id, actor, **facts)
    return done


async def refund(tx: Tx, job_id: UUID, amount_mc: int, reason: str, *, ref: str, actor: str) -> wallets.Grant:
    """Give back part or all of what a job was charged. Raises as `wallets.refund`."""
    done = await wallets.refund(tx, job_id, amount_mc, reason, ref=PREFIX + ref)
    await _record(tx, "job.refunded", "job", job_id, actor, done, reason)
    return done


async def _record(
    tx: Tx, action: str, entity_type: str, entity_id: UUID | str, actor: str, done: wallets.Grant, reason: str
) -> None:
    if not done.replayed:
        facts = {"amount_mc": done.amount_mc, "transfer": str(done.transfer_id), "reason": reason}
        await audit.record(tx, action, entity_type, entity_id, actor, **facts)
