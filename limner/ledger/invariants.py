"""The books, checked: whole (`check_all`) or what changed since a moment (`check_changes`). Role: limner_audit."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from limner.db.tx import Tx


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant, how many rows break it, and one of them."""

    invariant: str
    violations: int
    example: str | None


async def check_all(tx: Tx, org_id: UUID | None = None) -> list[Finding]:
    """Every invariant over one organization, or over the whole installation when None."""
    rows = await tx.all(
        "SELECT * FROM limner.check_invariants(%(org)s) UNION ALL SELECT * FROM limner.check_usage(%(org)s)",
        {"org": org_id},
    )
    found = [Finding(row["invariant"], row["violations"], row["example"]) for row in rows]
    return sorted(found, key=lambda f: int(f.invariant[1:].split()[0]))


async def check_changes(tx: Tx, since: datetime) -> tuple[int, int, str | None]:
    """(violations, things looked at, an example) among wallets and jobs with transfers since then."""
    row = await tx.get("SELECT * FROM limner.check_changes(%s)", [since])
    return row["violations"], row["checked"], row["example"]
