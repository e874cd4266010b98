"""Two headers of a request that makes work: `Prefer: wait=n` (RFC 7240) and `Cancel-After`, as Replicate has it."""

import re

from starlette.requests import Request

from limner.web import parsing
from limner.web.errors import invalid

WAIT = re.compile(r'wait(?:\s*=\s*"?(\d{1,9})"?)?', re.IGNORECASE | re.ASCII)
SECONDS = re.compile(r"\d{1,9}", re.ASCII)
PARTS = re.compile(r"(?=\d)(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", re.ASCII)
SHORTEST_S = 5
"""Of a deadline: a job that is claimed, asked for and stored takes about a second at best."""


def wait_s(request: Request, most_s: int) -> int:
    """How long the client likes to wait for the end of what it asks for, up to `most_s`; 0: it does not.

    `wait` alone is as long as may be. What is no preference of this kind is passed over (RFC 7240, 2), the first one holds.
    """
    for line in request.headers.getlist("Prefer"):
        for preference in line.split(","):
            found = WAIT.fullmatch(preference.partition(";")[0].strip())
            if found is not None:
                return most_s if found[1] is None else min(int(found[1]), most_s)
    return 0


def cancel_after_s(request: Request) -> int | None:
    """Seconds after which the work is to be given up: `45`, `45s`, `5m`, `1h30m`. None: it says nothing. Raises ApiError 400."""
    text = parsing.one_header(request, "Cancel-After")
    if text is None:
        return None
    seconds = int(text) if SECONDS.fullmatch(text) else _sum(text)
    if seconds is None:
        raise invalid({"/Cancel-After": ["must be a time such as 30, 45s, 5m or 1h30m"]})
    if seconds < SHORTEST_S:
        raise invalid({"/Cancel-After": [f"must be at least {SHORTEST_S} seconds"]})
    return seconds


def _sum(text: str) -> int | None:
    found = PARTS.fullmatch(text)
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds
