"""Organizations: the tenants."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import psycopg

from limner.db.tx import Tx
from limner.tenancy import audit

Grants = Literal["issue", "from_wallet"]
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
COLUMNS = """org_id, slug, name, is_active, grants, exposure_cap_mc, monthly_mc, jobs_per_min, max_open, show_costs, created_at"""
LIMITS = frozenset({"monthly_mc", "jobs_per_min", "max_open"})


class OrganizationNotFound(LookupError):
    """No organization has this slug or id."""


class SlugTaken(ValueError):
    """An organization or app of this slug exists."""


class BadSlug(ValueError):
    """Not a short name that addresses and commands can carry."""


@dataclass(frozen=True, slots=True)
class Organization:
    """`grants`: whether credits for end users are issued, or move out of the organization's own wallet.

    `monthly_mc`: its wallet's allowance; `jobs_per_min`, `max_open`: None is no limit.
    """

    org_id: UUID
    slug: str
    name: str
    is_active: bool
    grants: Grants
    exposure_cap_mc: int | None
    monthly_mc: int
    jobs_per_min: int | None
    max_open: int | None
    show_costs: bool
    created_at: datetime


async def create(
    tx: Tx, slug: str, name: str, *, actor: str, grants: Grants = "issue", exposure_cap_mc: int | None = None
) -> UUID:
    """Make the organization of this transaction's context, with its wallet. Raises BadSlug, SlugTaken."""
    check_slug(slug)
    try:
        await tx.execute(
            "SELECT limner.create_organization(NULL, %s, %s, %s, %s)", [slug, name, grants, exposure_cap_mc]
        )
    except psycopg.errors.UniqueViolation:
        raise SlugTaken(f"an organization named {slug} exists") from None
    await audit.record(tx, "organization.created", "organization", tx.org_id, actor, slug=slug, grants=grants)
    return tx.org_id


def check_slug(slug: str) -> None:
    """Raises BadSlug. The rule of organizations holds for apps too."""
    if not SLUG.fullmatch(slug):
        raise BadSlug(f"{slug!r} is no slug: 1 to 63 of a-z, 0-9 and -, not starting with -")


async def find(tx: Tx, slug_or_id: str) -> Organization | None:
    """By slug or id, across organizations: for an operator's system transaction."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM limner.organization WHERE slug = %(key)s OR org_id::text = %(key)s",
        {"key": slug_or_id},
    )
    return Organization(**row) if row else None


async def get(tx: Tx, slug_or_id: str) -> Organization:
    """As `find`; raises OrganizationNotFound."""
    found = await find(tx, slug_or_id)
    if found is None:
        raise OrganizationNotFound(f"there is no organization {slug_or_id}")
    return found


async def shows_costs(tx: Tx) -> bool:
    """Whether this transaction's organization may see what providers cost the platform."""
    row = await tx.get("SELECT show_costs FROM limner.organization WHERE org_id = %s", [tx.org_id])
    return bool(row["show_costs"])


async def list_all(tx: Tx, limit: int = 1000) -> list[Organization]:
    """Every organization by slug: for an operator's system transaction."""
    rows = await tx.all(f"SELECT {COLUMNS} FROM limner.organization ORDER BY slug LIMIT %s", [limit])
    return [Organization(**row) for row in rows]


async def change(
    tx: Tx,
    *,
    actor: str,
    name: str | None = None,
    is_active: bool | None = None,
    grants: Grants | None = None,
    exposure_cap_mc: int | None = None,
    show_costs: bool | None = None,
) -> None:
    """Change what is given of this transaction's organization; a cap of 0 or less lifts the cap."""
    cap = exposure_cap_mc
    await tx.execute(
        "UPDATE limner.organization SET name = coalesce(%(name)s, name), is_active = coalesce(%(active)s, is_active),"
        " grants = coalesce(%(grants)s, grants), show_costs = coalesce(%(costs)s, show_costs),"
        " exposure_cap_mc = CASE WHEN %(cap)s::bigint IS NULL THEN exposure_cap_mc WHEN %(cap)s::bigint > 0 THEN %(cap)s::bigint END"
        " WHERE org_id = %(org)s",
        {
            "name": name,
            "active": is_active,
            "grants": grants,
            "costs": show_costs,
            "cap": cap,
            "org": tx.org_id,
        },
    )
    given = {
        "name": name,
        "is_active": is_active,
        "grants": grants,
        "exposure_cap_mc": cap,
        "show_costs": show_costs,
    }
    await audit.record(
        tx,
        "organization.changed",
        "organization",
        tx.org_id,
        actor,
        **{key: value for key, value in given.items() if value is not None},
    )


async def set_limits(tx: Tx, limits: Mapping[str, int | None], *, actor: str) -> None:
    """Set these of LIMITS for this transaction's organization; None lifts one. In force within a minute."""
    if not limits or not limits.keys() <= LIMITS:
        raise ValueError(f"not limits of an organization: {sorted(limits)}")
    sets = ", ".join(f"{name} = %({name})s" for name in sorted(limits))
    await tx.execute(f"UPDATE limner.organization SET {sets} WHERE org_id = %(org)s", {**limits, "org": tx.org_id})
    await audit.record(tx, "organization.limited", "organization", tx.org_id, actor, **limits)
