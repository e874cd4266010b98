"""Apps: an organization's API clients, each with its own keys and end users."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg

from limner.db.tx import Tx
from limner.kit import ids
from limner.tenancy import audit
from limner.tenancy.organizations import SlugTaken, check_slug

COLUMNS = """id, slug, name, description, is_enabled, welcome_mc, monthly_mc, jobs_per_min, user_jobs_per_min, keep_days, keep_jobs,
body_users, created_at"""
LIMITS = frozenset({"monthly_mc", "jobs_per_min", "user_jobs_per_min", "keep_days", "keep_jobs"})


class AppNotFound(LookupError):
    """The organization has no app of this slug or id."""


@dataclass(frozen=True, slots=True)
class App:
    """`welcome_mc`: milli-credits each new end user is granted; `monthly_mc`: and each end user every month.

    `jobs_per_min`, `user_jobs_per_min`, `keep_days`, `keep_jobs`: None is what the installation's settings say.
    `body_users`: the `user` of a body of /v1 is the end user where X-User-ID names none.
    """

    id: UUID
    slug: str
    name: str
    description: str
    is_enabled: bool
    welcome_mc: int
    monthly_mc: int
    jobs_per_min: int | None
    user_jobs_per_min: int | None
    keep_days: int | None
    keep_jobs: int | None
    body_users: bool
    created_at: datetime


async def create(tx: Tx, slug: str, name: str, *, actor: str, description: str = "", welcome_mc: int = 0) -> App:
    """Make an app. Raises organizations.BadSlug, SlugTaken."""
    check_slug(slug)
    app_id = ids.new()
    try:
        await tx.execute(
            "INSERT INTO limner.app (org_id, id, slug, name, description, welcome_mc) VALUES (%s, %s, %s, %s, %s, %s)",
            [tx.org_id, app_id, slug, name, description, welcome_mc],
        )
    except psycopg.errors.UniqueViolation:
        raise SlugTaken(f"this organization has an app named {slug}") from None
    await audit.record(tx, "app.created", "app", app_id, actor, slug=slug, welcome_mc=welcome_mc)
    return await get(tx, slug)


async def get(tx: Tx, slug_or_id: str) -> App:
    """By slug or id. Raises AppNotFound."""
    row = await tx.find(
        f"SELECT {COLUMNS} FROM limner.app WHERE org_id = %(org)s AND (slug = %(key)s OR id::text = %(key)s)",
        {"org": tx.org_id, "key": slug_or_id},
    )
    if row is None:
        raise AppNotFound(f"this organization has no app {slug_or_id}")
    return App(**row)


async def list_all(tx: Tx, limit: int = 1000) -> list[App]:
    """The organization's apps by slug."""
    rows = await tx.all(
        f"SELECT {COLUMNS} FROM limner.app WHERE org_id = %s ORDER BY slug LIMIT %s", [tx.org_id, limit]
    )
    return [App(**row) for row in rows]


async def change(
    tx: Tx,
    app: App,
    *,
    actor: str,
    name: str | None = None,
    description: str | None = None,
    is_enabled: bool | None = None,
    welcome_mc: int | None = None,
    body_users: bool | None = None,
) -> App:
    """Change what is given; a disabled app's keys answer 403 within a minute."""
    given = {
        "name": name,
        "description": description,
        "is_enabled": is_enabled,
        "welcome_mc": welcome_mc,
        "body_users": body_users,
    }
    await tx.execute(
        "UPDATE limner.app SET name = coalesce(%(name)s, name), description = coalesce(%(description)s, description),"
        " is_enabled = coalesce(%(is_enabled)s, is_enabled), welcome_mc = coalesce(%(welcome_mc)s, welcome_mc),"
        " body_users = coalesce(%(body_users)s, body_users)"
        " WHERE org_id = %(org)s AND id = %(id)s",
        {**given, "org": tx.org_id, "id": app.id},
    )
    await audit.record(
        tx,
        "app.changed",
        "app",
        app.id,
        actor,
        **{key: value for key, value in given.items() if value is not None},
    )
    return await get(tx, str(app.id))


async def set_limits(tx: Tx, app: App, limits: Mapping[str, int | None], *, actor: str) -> App:
    """Set these of LIMITS; None goes back to the installation's default. In force within a minute."""
    if not limits or not limits.keys() <= LIMITS:
        raise ValueError(f"not limits of an app: {sorted(limits)}")
    sets = ", ".join(f"{name} = %({name})s" for name in sorted(limits))
    await tx.execute(
        f"UPDATE limner.app SET {sets} WHERE org_id = %(org)s AND id = %(id)s",
        {**limits, "org": tx.org_id, "id": app.id},
    )
    await audit.record(tx, "app.limited", "app", app.id, actor, **limits)
    return await get(tx, str(app.id))
