"""What a submission is held to: jobs a minute of user, app and organization, and how an answer tells what is left."""

from dataclasses import dataclass

from limner.hub import jobs
from limner.ledger import refusals
from limner.web import rates
from limner.web.caller import Quotas
from limner.web.errors import ApiError

LARGE = 6000
PIECES = 8
"""Buckets of apps and organizations from LARGE a minute on are in PIECES, as in SQL (limner._shards)."""


@dataclass(frozen=True, slots=True)
class SubmitLimits:
    """Runs a job, how many may wait for the database, jobs a minute (0: any), how far ahead a job may be ordered."""

    max_runs: int
    backlog: int
    user_per_min: int
    app_per_min: int
    max_run_at_s: int

    def of(self, quotas: Quotas, *, for_user: bool) -> jobs.Limits:
        """What holds for a caller: its own quotas before the installation's. Without an end user there is no user's limit."""
        return jobs.Limits(
            (quotas.user_per_min or self.user_per_min or None) if for_user else None,
            quotas.app_per_min or self.app_per_min or None,
            quotas.org_per_min,
            quotas.max_open,
        )


def _policies(limits: jobs.Limits) -> list[tuple[str, int]]:
    named = (("user", limits.user_per_min), ("app", limits.app_per_min), ("organization", limits.org_per_min))
    return [(name, size) for name, size in named if size is not None]


def _pieces(limit: str, size: int) -> int:
    return PIECES if limit != "user" and size >= LARGE else 1


def headers(limits: jobs.Limits, submitted: jobs.Submitted, now_s: float) -> dict[str, str]:
    """What is left of each limit after this submit, at `now_s` of the database's clock. A replay took nothing: no headers."""
    full = {"user": submitted.user_full_at, "app": submitted.app_full_at, "organization": submitted.org_full_at}
    quotas = [
        rates.Quota(name, size, moment.timestamp() - now_s, _pieces(name, size))
        for name, size in _policies(limits)
        if (moment := full[name]) is not None
    ]
    return rates.headers(quotas)


def too_many(error: refusals.TooMany, limits: jobs.Limits) -> ApiError:
    """429 for the limit that refused, with the policies of all that hold."""
    size, wait_s = error.size, error.retry_after_s
    if error.limit == "open_jobs":
        message = f"The organization has its {size} open jobs already: wait until some are done."
        return rates.refusal("open_jobs", size, wait_s, message, {})
    pieces = _pieces(error.limit, size)
    # the bucket lets the next one pass when it is a step short of empty
    quota = rates.Quota(error.limit, size, wait_s + rates.WINDOW_S * (1 - pieces / size), pieces, spent=True)
    message = f"More than {size} jobs a minute for this {error.limit}: try again later."
    return rates.refusal(error.limit, size, wait_s, message, rates.headers([quota], _policies(limits)))
