"""`limner providers health` and `limner providers test`: how providers fare, and whether they answer at all."""

from collections.abc import Sequence
from typing import Any

from limner.cli import printing, session
from limner.cli.arguments import Json, OrgOrPlatform
from limner.cli.providers import app
from limner.db.context import PLATFORM
from limner.db.pools import Database
from limner.hub import health
from limner.hub.health import Faring

AT_ONCE = 8


@app.command("health")
def show_health(org: OrgOrPlatform = None, as_json: Json = False) -> None:
    """How each provider fares, as all processes know it: its state, its breaker, its last error."""

    async def work(db: Database) -> list[Faring]:
        async with session.operator_tx(db, org) as tx:
            return await health.list_faring(tx)

    found = session.run(work)
    if as_json:
        printing.document({"providers": [_shape(faring) for faring in found]})
        return
    rows = [
        (f.name, "platform" if f.org_id == PLATFORM else "own", f.state.upper(), _standing(f), _ms(f.latency_ms), f.checked_at,
         f.last_error, f.last_error_at)
        for f in found
    ]  # fmt: skip
    columns = ("name", "whose", "state", "is asked", "latency", "last seen", "last error", "at")
    printing.table(columns, rows, empty="There is no provider here yet.")


def _standing(faring: Faring) -> str:
    """Whether jobs and calls come to it now."""
    if not faring.is_enabled:
        return "no, disabled"
    if faring.open_until is not None:
        return f"no, breaker open until {printing.when(faring.open_until)}, then one at a time"
    return f"no, rests until {printing.when(faring.rest_until)}" if faring.rest_until is not None else "yes"


def _ms(latency_ms: float | None) -> str | None:
    return None if latency_ms is None else f"{latency_ms:.0f} ms"


def _shape(faring: Faring) -> dict[str, Any]:
    fields: Sequence[str] = (
        "name", "adapter", "state", "checked_at", "last_error", "last_error_at", "latency_ms", "opened_at", "open_until", "rest_until",
    )  # fmt: skip
    told = {name: getattr(faring, name) for name in fields}
    return told | {"enabled": faring.is_enabled, "platform": faring.org_id == PLATFORM}
