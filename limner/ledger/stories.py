"""The story of one job's money in plain words: what was set aside, out of which lots, what was charged, what came back."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from limner.db.tx import Row, Tx
from limner.kit import money

JOB = """
SELECT j.id, j.model, j.state, j.error_code, j.wallet_id, j.price_hold_mc, j.price_final_mc, j.refunded_mc, j.drew_lots, u.external_id
  FROM limner.job j LEFT JOIN limner.end_user u ON u.org_id = j.org_id AND u.id = j.end_user_id
 WHERE j.org_id = %(org)s AND j.id = %(job)s
"""
TRANSFERS = """
SELECT x.id, x.kind, x.amount_mc, x.reason, x.created_at FROM limner.transfer x
 WHERE x.org_id = %(org)s AND (x.id = %(job)s OR x.hold_id = %(job)s OR (x.job_id = %(job)s AND x.kind = 'refund'))
 ORDER BY x.created_at, x.id LIMIT 1000
"""
LAPSED = """
SELECT x.id, x.kind, x.amount_mc, x.reason, x.created_at FROM limner.transfer r
  JOIN limner.transfer x ON x.org_id = r.org_id AND x.debit_wallet = r.debit_wallet AND x.debit_version = r.debit_version + 1
 WHERE r.org_id = %(org)s AND r.hold_id = %(job)s AND x.kind = 'expire' AND x.job_id = %(job)s
"""
DRAWS = """
SELECT d.amount_mc, d.used_mc, l.kind, l.expires_at FROM limner.lot_draw d
  JOIN limner.lot l ON l.org_id = d.org_id AND l.id = d.lot_id
 WHERE d.org_id = %(org)s AND d.job_id = %(job)s ORDER BY l.expires_at, l.id LIMIT 1000
"""
REOPENED = """
SELECT l.transfer_id, l.granted_mc, l.expires_at FROM limner.lot l
 WHERE l.org_id = %(org)s AND l.wallet_id = %(wallet)s AND l.transfer_id = ANY (%(refunds)s) ORDER BY l.expires_at DESC, l.id
"""
COST = """
SELECT sum(c.cost_micro_usd) FILTER (WHERE NOT c.own_key)::bigint AS cost_micro_usd, count(*) AS calls FROM limner.provider_call c
 WHERE c.org_id = %(org)s AND c.job_id = %(job)s
"""


class NoSuchJob(LookupError):
    """The organization has no job of this id."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One thing that happened; `amount_mc` is what it was about."""

    at: datetime
    what: str
    amount_mc: int
    words: str


@dataclass(frozen=True, slots=True)
class Story:
    """`payer`: the end user's external id, or None for the organization. `cost_micro_usd`: None when no provider told one."""

    job_id: UUID
    model: str
    state: str
    payer: str | None
    charged_mc: int | None
    refunded_mc: int
    cost_micro_usd: int | None
    chapters: list[Chapter]


async def tell(tx: Tx, job_id: UUID) -> Story:
    """Raises NoSuchJob. What providers cost is in it: whom that may be told is the caller's to know."""
    key = {"org": tx.org_id, "job": job_id}
    job = await tx.find(JOB, key)
    if job is None:
        raise NoSuchJob(f"there is no job {job_id}")
    transfers = await tx.all(TRANSFERS, key)
    draws: list[Row] = []
    reopened: list[Row] = []
    if job["drew_lots"]:
        draws = await tx.all(DRAWS, key)
        transfers += await tx.all(LAPSED, key)
        refunds = [row["id"] for row in transfers if row["kind"] == "refund"]
        reopened = await tx.all(REOPENED, {"org": tx.org_id, "wallet": job["wallet_id"], "refunds": refunds})
    cost = await tx.get(COST, key)
    chapters = [_chapter(row, job, draws, reopened) for row in sorted(transfers, key=lambda row: row["created_at"])]
    return Story(
        job_id, job["model"], job["state"], job["external_id"], job["price_final_mc"], job["refunded_mc"],
        cost["cost_micro_usd"], chapters,
    )  # fmt: skip


def _chapter(row: Row, job: Row, draws: list[Row], reopened: list[Row]) -> Chapter:
    amount = row["amount_mc"]
    match row["kind"]:
        case "hold":
            words = f"{_credits(amount)} set aside" + _from(amount, [(d["amount_mc"], d) for d in draws])
        case "post":
            spare = job["price_hold_mc"] - amount
            words = f"{_credits(amount)} charged" + _from(amount, [(d["used_mc"], d) for d in draws if d["used_mc"]])
            words += f"; {money.exact(spare)} not needed and back" if spare else ""
        case "void":
            why = f" ({job['error_code']})" if job["error_code"] else ""
            words = f"Nothing charged: the job {'was ' if job['state'] == 'cancelled' else ''}{job['state']}{why}; "
            words += f"{_credits(job['price_hold_mc'])} back"
            amount = job["price_hold_mc"]
        case "expire":
            words = f"{_credits(amount)} of what came back had ended meanwhile and lapsed"
        case _:
            lots = [lot for lot in reopened if lot["transfer_id"] == row["id"]]
            ends = "".join(f"; {money.exact(x['granted_mc'])} of it until {_day(x['expires_at'])}" for x in lots)
            words = f"{_credits(amount)} refunded" + (f": {row['reason']}" if row["reason"] else "") + ends
    return Chapter(row["created_at"], row["kind"], amount, words)


def _from(amount_mc: int, parts: list[tuple[int, Row]]) -> str:
    """Which lots an amount came out of, and how much never ended."""
    if not parts:
        return ""
    told = list(_parts(parts))
    lasting = amount_mc - sum(part for part, _ in parts)
    if lasting:
        told.append(f"{money.exact(lasting)} that never ends")
    return ": " + ", ".join(told)


def _parts(parts: list[tuple[int, Row]]) -> Iterator[str]:
    for part, lot in parts:
        yield f"{money.exact(part)} of {_KIND[lot['kind']]} that ends {_day(lot['expires_at'])}"


_KIND = {
    "grant": "a grant", "bonus": "a bonus", "adjustment": "an adjustment", "allowance": "an allowance", "refund": "a refund",
}  # fmt: skip


def _credits(mc: int) -> str:
    return f"{money.exact(mc)} {'credit' if mc == money.MC else 'credits'}"


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
