"""What the SQL functions refuse, as exceptions: one class a code (LM402 … LM503)."""

import json

import psycopg


class Refused(Exception):
    """A verb of money or jobs said no; nothing was written."""


class TooFewCredits(Refused):
    """`wallet`: "end_user", "organization" or "issuance"; what it holds, what was needed and what it owes, in milli-credits."""

    def __init__(self, message: str, wallet: str, balance_mc: int, required_mc: int, owed_mc: int = 0) -> None:
        super().__init__(message)
        self.wallet = wallet
        self.balance_mc = balance_mc
        self.required_mc = required_mc
        self.owed_mc = owed_mc


class TooMany(Refused):
    """A limit is reached. `limit`: user, app, organization (jobs a minute) or open_jobs; `size` of it; when to come again."""

    def __init__(self, message: str, limit: str, size: int, retry_after_s: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.size = size
        self.retry_after_s = retry_after_s


class NoPlace(Refused):
    """The provider has as many jobs and calls as it may have at once."""


class Inactive(Refused):
    """The end user is deactivated."""


class Absent(Refused):
    """There is no such object in this organization."""


class StaleLease(Refused):
    """The worker lost its lease: somebody else owns the job now, or nobody."""


class Reused(Refused):
    """The idempotency key or reference was used with other parameters."""


class BadAmount(Refused):
    """The amount is outside what is allowed."""


class BadExpiry(BadAmount):
    """Credits cannot end then."""


class BadRows(Refused):
    """Rows of a batch cannot be granted: (place in the batch, field, why) of each, at most a few a row."""

    def __init__(self, message: str, rows: list[tuple[int, str, str]]) -> None:
        super().__init__(message)
        self.rows = rows


def read(error: psycopg.Error) -> Exception:
    """The refusal behind a database error, or the error itself when it is none of ours."""
    message = error.diag.message_primary or "refused"
    detail = error.diag.message_detail or ""
    match error.sqlstate:
        case "LM402":
            facts = json.loads(detail)
            return TooFewCredits(
                message, facts["wallet"], facts["balance_mc"], facts["required_mc"], facts.get("owed_mc", 0)
            )
        case "LM403" | "LM404" | "LM409" | "LM503":
            classes = {"LM403": Inactive, "LM404": Absent, "LM409": StaleLease, "LM503": NoPlace}
            return classes[error.sqlstate](message)
        case "LM429":
            facts = json.loads(detail)
            return TooMany(message, facts["limit"], facts["size"], facts["retry_after_s"])
        case "LM422" if detail.startswith("["):
            rows = json.loads(detail)
            return BadRows(message, [(row["index"], row["field"], row["message"]) for row in rows])
        case "LM422":
            return {"idempotency": Reused, "expiry": BadExpiry}.get(detail, BadAmount)(message)
        case _:
            return error
