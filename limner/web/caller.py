"""Who is calling, as plain data; tenancy fills it."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from starlette.requests import Request

from limner.web.errors import ApiError


@dataclass(frozen=True, slots=True)
class Quotas:
    """Jobs a minute of each end user, of the app and of its organization, and the organization's open jobs; None: the default."""

    user_per_min: int | None = None
    app_per_min: int | None = None
    org_per_min: int | None = None
    max_open: int | None = None


DEFAULT_QUOTAS = Quotas()


@dataclass(frozen=True, slots=True)
class Caller:
    """An app that proved a key. `external_id`: the end user it speaks for (X-User-ID), if any.

    `body_users`: where a body names its user, it may be taken from there.
    """

    org_id: UUID
    app_id: UUID
    key_id: UUID
    scopes: frozenset[str]
    external_id: str | None
    quotas: Quotas = DEFAULT_QUOTAS
    body_users: bool = False

    def require(self, scope: str) -> None:
        """Raises ApiError 403 `missing_scope`."""
        if scope not in self.scopes:
            raise ApiError(403, "missing_scope", f"This API key lacks the scope {scope}.")


class Authenticate(Protocol):
    """Raises ApiError 401 (missing, malformed or dead key), 403 (disabled app, inactive organization), 429 (too many reads)."""

    async def __call__(self, request: Request) -> Caller: ...

    async def again(self, request: Request) -> Caller:
        """For a request that is still being answered: no read is counted, and the answer is fresh."""
        ...
