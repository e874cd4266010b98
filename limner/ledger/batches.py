"""Grants by the batch: up to a thousand in one commit, all or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson
import psycopg

from limner.db.tx import Tx
from limner.kit import ids
from limner.ledger import refusals
from limner.ledger.wallets import Grant, Kind

MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """Credits for one end user of the app; one user may stand in several rows."""

    external_id: str
    amount_mc: int
    reason: str
    kind: Kind = "grant"
    expires_at: datetime | None = None


async def grant(tx: Tx, app_id: UUID, rows: Sequence[Row], *, ref: str | None, request_hash: bytes) -> list[Grant]:
    """Every row's grant, in their order, making users that are new. With a `ref`, the same batch again is a replay.

    Raises refusals.BadRows (with all that is wrong), refusals.TooFewCredits (for the sum), refusals.Reused.
    """
    sent = [
        {
            "external_id": row.external_id, "new_user": ids.new(), "transfer": ids.new(), "kind": row.kind,
            "amount_mc": row.amount_mc, "expires_at": row.expires_at, "reason": row.reason,
        }
        for row in rows
    ]  # fmt: skip
    try:
        done = await tx.all(
            "SELECT * FROM limner.grant_batch(%s, %s, %s::text::jsonb, %s, %s) ORDER BY place",
            [tx.ctx, app_id, orjson.dumps(sent).decode(), ref, request_hash],
        )
    except psycopg.Error as error:
        raise refusals.read(error) from error
    return [
        Grant(found["outcome"] == "replayed", found["transfer_id"], row.amount_mc, found["available_mc"])
        for row, found in zip(rows, done, strict=True)
    ]
