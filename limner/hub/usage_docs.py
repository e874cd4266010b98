"""What OpenAPI says of usage: its answer and its parameters."""

from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, Field

from limner.hub import docs, schemas, usage

DEFAULT_ROWS = 100
MAX_ROWS = 1000
Group = Literal["day", "app", "user", "model", "provider", "kind"]


class UsageLine(BaseModel):
    """One group: the fields it is grouped by, and its sums. Credits are exact decimals.

    `refunded` is what was given back in these days, whenever it had been charged. `quantity` counts `unit`s, with `group_by=kind`.
    """

    day: date | None = None
    app: str | None = None
    user_id: str | None = Field(default=None, description="None: the organization itself paid.")
    model: str | None = None
    provider: str | None = None
    kind: str | None = None
    unit: str | None = None
    quantity: int | None = None
    jobs: int = Field(description="Jobs that delivered; each counts once, under the kind that was sold.")
    credits: str = Field(description="What was charged.")
    refunded: str
    cost_micro_usd: int | None = Field(
        default=None,
        description="Where the organization may see costs: what providers took, in millionths of a dollar.",
    )


class UsagePage(BaseModel):
    """The days (UTC) from `from` to `to`, both included."""

    first: date = Field(alias="from")
    to: date
    group_by: list[Group]
    usage: list[UsageLine]
    next_cursor: str | None


GROUPS = "|".join(usage.COLUMNS)
GET_USAGE: dict[str, Any] = {
    "summary": "What was used",
    "description": "What the app's jobs used and were charged, exact to the last commit. With X-User-ID of that user alone. The days are"
    " those on which jobs ended, in UTC. `group_by=user` needs the scope users:read too.",
    "response_model": UsagePage,
    "responses": {
        200: {
            "content": {"text/csv": {"schema": {"type": "string"}}},
            "description": "With `format=csv` all lines at once, the fields' names in the first.",
        },
        **{
            status: {"model": schemas.Problem, "description": docs.REASONS[status]}
            for status in (400, 401, 403, 429, 503)
        },
    },
    "openapi_extra": {
        "parameters": [
            docs.USER_ID,
            docs.query("from", {"type": "string", "format": "date"}, "The first day; without it 30 days in all."),
            docs.query("to", {"type": "string", "format": "date"}, "The last day, included; without it today."),
            docs.query(
                "group_by",
                {"type": "string", "pattern": f"^({GROUPS})(,({GROUPS}))*$", "default": "day", "example": "day,model"},
                "Some of day, app, user, model, provider, kind, each once; lines come in this order.",
            ),
            docs.query("format", {"type": "string", "enum": ["json", "csv"], "default": "json"}, "How it is written."),
            docs.query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MAX_ROWS, "default": DEFAULT_ROWS},
                "Lines on a page of JSON.",
            ),
            docs.query("cursor", {"type": "string"}, "`next_cursor` of the page before; empty for the first."),
        ]
    },
}
