"""A wallet's history, a row a transfer, each with its reason in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from limner.db.tx import Row, Tx
from limner.kit import money

KINDS = (
    "grant", "bonus", "adjustment", "allowance", "hold", "post", "void", "refund", "expire", "clawback",
)  # fmt: skip
SIDE = """
SELECT * FROM (SELECT * FROM limner.transfer x WHERE x.org_id = %(org)s AND x.{side}_wallet = %(wallet)s AND x.{side}_version < %(before)s
                  AND (%(kinds)s::text[] IS NULL OR x.kind = ANY (%(kinds)s::text[]))
                  AND (%(since)s::timestamptz IS NULL OR x.created_at >= %(since)s::timestamptz)
                  AND (%(until)s::timestamptz IS NULL OR x.created_at < %(until)s::timestamptz)
                  AND (%(job)s::uuid IS NULL OR x.job_id = %(job)s::uuid)
                ORDER BY x.{side}_version DESC LIMIT %(limit)s) {side}
"""
QUERY = f"""
SELECT x.id, x.kind, x.created_at, x.job_id, x.reason, x.ref, x.amount_mc, h.amount_mc AS hold_mc, j.model, j.state, j.error_code,
       x.credit_wallet IS NOT DISTINCT FROM %(wallet)s AS incoming,
       CASE WHEN x.credit_wallet = %(wallet)s THEN x.credit_version ELSE x.debit_version END AS version,
       CASE WHEN x.credit_wallet = %(wallet)s THEN x.credit_available_mc ELSE x.debit_available_mc END AS available_mc
  FROM ({SIDE.format(side="debit")} UNION ALL {SIDE.format(side="credit")}) x
  LEFT JOIN limner.transfer h ON h.org_id = x.org_id AND h.id = x.hold_id
  LEFT JOIN limner.job j ON j.org_id = x.org_id AND j.id = x.job_id
 ORDER BY version DESC LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Line:
    """`change_mc` is what happened to the spendable balance, `available_mc` what it was afterwards."""

    version: int
    at: datetime
    kind: str
    change_mc: int
    available_mc: int
    why: str
    job_id: UUID | None
    transfer_id: UUID


@dataclass(frozen=True, slots=True)
class Filter:
    """Which movements: of these kinds, from `since` on, before `until`, of one job. None: any."""

    kinds: Sequence[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    job_id: UUID | None = None


EVERYTHING = Filter()


async def list_lines(
    tx: Tx, wallet_id: UUID, limit: int = 50, before: int | None = None, only: Filter = EVERYTHING
) -> list[Line]:
    """Newest first; `before` is the version to continue from."""
    rows = await tx.all(
        QUERY,
        {
            "org": tx.org_id, "wallet": wallet_id, "limit": limit, "before": before or 2**62, "since": only.since,
            "until": only.until, "job": only.job_id, "kinds": list(only.kinds) if only.kinds is not None else None,
        },
    )  # fmt: skip
    return [_line(row) for row in rows]


def _line(row: Row) -> Line:
    return Line(
        version=row["version"],
        at=row["created_at"],
        kind=row["kind"],
        change_mc=_change_mc(row),
        available_mc=row["available_mc"],
        why=_why(row),
        job_id=row["job_id"],
        transfer_id=row["id"],
    )


def _change_mc(row: Row) -> int:
    amount: int = row["amount_mc"]
    if row["kind"] in {"post", "void"}:
        return int(row["hold_mc"]) - amount
    return amount if row["incoming"] else -amount


def _why(row: Row) -> str:
    model = row["model"] or "a model"
    amount = money.exact(row["amount_mc"])
    match row["kind"]:
        case "hold":
            return f"Set aside {amount} for a {model} job"
        case "post":
            spare = row["hold_mc"] - row["amount_mc"]
            back = f"; {money.exact(spare)} that was not needed came back" if spare else ""
            return f"{model} delivered: {amount} charged{back}"
        case "void":
            failure = f"failed ({row['error_code']})" if row["error_code"] else "failed"
            cause = "was cancelled" if row["state"] == "cancelled" else failure
            return f"The {model} job {cause}: {money.exact(row['hold_mc'])} came back, nothing was charged"
        case "refund":
            return f"Refund for a {model} job" + (f": {row['reason']}" if row["reason"] else "")
        case "grant" | "bonus" | "allowance" if not row["incoming"]:
            return "Moved to an end user" + (f": {row['reason']}" if row["reason"] else "")
        case _:
            return row["reason"] or ("Credits added" if row["incoming"] else "Credits taken")
