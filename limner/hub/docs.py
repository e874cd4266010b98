"""What OpenAPI says of each endpoint: summaries, bodies, examples, and every status with its reason."""

from typing import Any

from starlette.responses import Response

from limner.hub import check_schemas, checks, jobs, receipt_schemas, schemas
from limner.hub.providers.local.models import CHECK
from limner.hub.schema import BATCH, GRANT, GRANT_ROW, ORDER
from limner.ledger import statements

USER_ID = {
    "name": "X-User-ID",
    "in": "header",
    "required": False,
    "description": "The app's own id of the end user this call is for.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "user_42",
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 255 visible ASCII characters. The same key and body again answers the first answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "example": "req_abc123",
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the last answer.",
    "schema": {"type": "string"},
}
PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=n`: answer when the job has ended, at the latest in n seconds (RFC 7240).",
    "schema": {"type": "string"},
    "example": "wait=30",
}
CANCEL_AFTER = {
    "name": "Cancel-After",
    "in": "header",
    "required": False,
    "description": "Give the job up when it has not ended so long after it was due: `45`, `45s`, `5m`, `1h30m`; at least 5 seconds.",
    "schema": {"type": "string"},
    "example": "5m",
}
REASONS = {
    400: "Invalid input: `details` says what is wrong at each JSON pointer.",
    401: "Missing, malformed or revoked API key.",
    402: "Too few credits, or a debt: `balance`, `required`, `owed` in whole credits.",
    403: "The key lacks a scope, or the app or user is disabled.",
    404: "No such object here: what is absent and what is somebody else's answer alike.",
    408: "The body took too long to arrive.",
    409: "The job has ended already.",
    413: "The body is too large.",
    415: "Not application/json.",
    429: "A limit is reached: `limit`, `limit_size`, `retry_after`; the headers of the limits, and `Retry-After`.",
    422: "The idempotency key was used for another request.",
    503: "Busy: `Retry-After` says when to come back; with an idempotency key nothing is done twice.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.Problem, "description": REASONS[status]} for status in (400, 401, 403, *statuses, 503)
    }


def _body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    """A parameter of the query that may be left out."""
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def page(rows: str) -> list[dict[str, Any]]:
    """The parameters of a list that is paged: how many of these rows, and from where on."""
    return [
        query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, f"{rows} on a page."),
        query(
            "cursor",
            {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "string", "maxLength": 0}]},
            "`next_cursor` of the page before; empty for the first.",
        ),
    ]


def header(description: str, kind: str = "string") -> dict[str, Any]:
    """A header of an answer."""
    return {"description": description, "schema": {"type": kind}}


def _without_length(schema: dict[str, Any]) -> dict[str, Any]:
    """How long a text may be is the installation's to set."""
    text = {name: value for name, value in schema["properties"]["text"].items() if not name.endswith("Length")}
    return {**schema, "properties": {**schema["properties"], "text": text}}


LIMITS = {
    "RateLimit-Policy": header("Every limit that holds for this call: its name, size and window."),
    "RateLimit": header("What is left of each (`r`) and in how many seconds it will be full again (`t`)."),
    "X-RateLimit-Limit": header("The size of the tightest one.", "integer"),
    "X-RateLimit-Remaining": header("What is left of it.", "integer"),
    "X-RateLimit-Reset": header("Seconds until it is full again.", "integer"),
}
RETRY_AFTER = header("Seconds; while the job is open.", "integer")
APPLIED = header("`wait=n`: so long it was waited for, at most; absent where nobody waited.")
REPLAYED = header("`true` when this answer was given before for the same idempotency key.")

_STREAM = """retry: 2000

id: 17
event: job.started
data: {"id":"019a…","seq":17,"type":"job.started","timestamp":"2026-11-20T10:00:00Z","data":{"job_id":"019a…"}}

event: progress
data: {"job_id":"019a…","percent":40,"stage":"painting"}

"""
GENERATE: dict[str, Any] = {
    "summary": "Submit a job",
    "description": "Holds the price, stores the job and queues it, all in one commit; a worker does the rest. With `dry_run=1`"
    " nothing is stored, held or counted: 200 says what would happen.",
    "response_model": schemas.Accepted,
    "responses": {
        200: {
            "model": schemas.JobBody | schemas.DryRun,
            "description": "With `Prefer: wait=n`: the job, which has ended. With `dry_run=1`: what would happen; nothing did.",
            "headers": {"Preference-Applied": APPLIED},
        },
        202: {
            "headers": {
                "Location": header("Where the job is."),
                "Idempotent-Replayed": REPLAYED,
                "Preference-Applied": APPLIED,
                **LIMITS,
            }
        },
        **_errors(402, 404, 408, 413, 415, 422, 429),
    },
    "openapi_extra": {
        "parameters": [
            USER_ID,
            IDEMPOTENCY_KEY,
            PREFER,
            CANCEL_AFTER,
            query(
                "dry_run",
                {"type": "string", "enum": ["1", "0", "true", "false"]},
                "1: say what would happen, do nothing.",
            ),
        ],
        "requestBody": _body(
            ORDER,
            {
                "model": "local/canvas",
                "input": {"prompt": "A quiet harbour at sunset", "aspect_ratio": "16:9", "num_outputs": 2},
                "idempotency_key": "req_abc123",
            },
        ),
    },
}
GET_JOB: dict[str, Any] = {
    "summary": "Get a job",
    "description": "Send `If-None-Match` with the last ETag: 304 while nothing changed. `Retry-After` while it runs.",
    "response_model": schemas.JobBody,
    "responses": {
        200: {"headers": {"ETag": header("Of this state of the job."), "Retry-After": RETRY_AFTER}},
        304: {"description": "Nothing changed since that ETag."},
        **_errors(404, 429),
    },
    "openapi_extra": {"parameters": [USER_ID, IF_NONE_MATCH]},
}
LIST_JOBS: dict[str, Any] = {
    "summary": "List jobs",
    "description": "Newest first: one user's with `X-User-ID`, the whole app's without.",
    "response_model": schemas.JobPage,
    "responses": _errors(429),
    "openapi_extra": {
        "parameters": [
            USER_ID,
            query("status", {"type": "string", "enum": list(jobs.STATES)}, "Only jobs in this state."),
            *page("Jobs"),
        ]
    },
}
LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The `id` of the last event that arrived: what came after it is sent. Browsers send it by themselves.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
    "example": "17",
}
FOLLOW_JOB: dict[str, Any] = {
    "summary": "Follow a job",
    "description": "Server-sent events until the job ends: `job.started`, `job.attempt_failed`, then `job.completed`, `job.failed`"
    " or `job.cancelled` with the whole `job`; `progress` in between, at most twice a second. A comment is sent where nothing"
    " was new. A stream that broke is taken up again with `Last-Event-ID`; 204 where nothing is left to tell.",
    "response_class": Response,
    "responses": {
        200: {
            "description": "The stream.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
        },
        204: {"description": "The client has been told all there is: it need not come back."},
        **_errors(404, 429),
    },
    "openapi_extra": {"parameters": [USER_ID, LAST_EVENT_ID]},
}
LIST_EVENTS: dict[str, Any] = {
    "summary": "List events",
    "description": "The app's log, in its order, behind the position `after`. A page may be short, even empty, although `more` is"
    " true: ask on with `next_after`. Whoever has read up to there has missed nothing.",
    "response_model": schemas.EventPage,
    "responses": _errors(429),
    "openapi_extra": {
        "parameters": [
            query("after", {"type": "integer", "minimum": 0, "default": 0}, "`next_after` of the page before."),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "Events on a page."),
        ]
    },
}
CANCEL_JOB: dict[str, Any] = {
    "summary": "Cancel a job",
    "description": "200 `cancelled` when nobody works on it; 202 `requested` when a worker does and will be told.",
    "response_model": schemas.Cancelled,
    "responses": {
        202: {"model": schemas.Cancelled, "description": "A worker has it; if the result arrives first, it counts."},
        **_errors(404, 409),
    },
    "openapi_extra": {"parameters": [USER_ID]},
}
GET_RECEIPT: dict[str, Any] = {
    "summary": "A job's receipt",
    "description": "Every run and attempt, every transfer of credits, what was used, and the rule that chose the provider.",
    "response_model": receipt_schemas.Receipt,
    "responses": _errors(404, 429),
    "openapi_extra": {"parameters": [USER_ID]},
}
LIST_MODELS: dict[str, Any] = {
    "summary": "List models",
    "description": "What this organization may use, each with its price and strict input schema.",
    "response_model": schemas.ModelList,
    "responses": _errors(429),
}
LIST_TRANSACTIONS: dict[str, Any] = {
    "summary": "A user's transactions",
    "description": "What moved in the user's wallet and why, newest first. Reading never makes a user.",
    "response_model": schemas.TransactionPage,
    "responses": _errors(404, 429),
    "openapi_extra": {
        "parameters": [
            USER_ID,
            query("type", {"type": "string", "enum": list(statements.KINDS)}, "Only movements of this type."),
            query("since", {"type": "string", "format": "date-time"}, "From this moment on (RFC 3339 with an offset)."),
            query("until", {"type": "string", "format": "date-time"}, "Before this moment."),
            query("job_id", {"type": "string", "format": "uuid"}, "Only what one job moved."),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "Rows on a page."),
            query("cursor", {"type": "string"}, "`next_cursor` of the page before; empty for the first."),
        ]
    },
}
GET_USER: dict[str, Any] = {
    "summary": "Get a user",
    "description": "Balance, what of it ends when, debt, and job counts. Reading never makes a user.",
    "response_model": schemas.UserBody,
    "responses": _errors(404, 429),
    "openapi_extra": {"parameters": [USER_ID]},
}
GRANT_BATCH: dict[str, Any] = {
    "summary": "Grant tokens to many users",
    "description": "1 to 1,000 grants in one commit, all or none, in their order; makes users that are new. A request that"
    " was granted before is answered as it was then.",
    "response_model": schemas.GrantedBatch,
    "responses": {
        200: {"headers": {"Idempotent-Replayed": REPLAYED}},
        **_errors(402, 404, 408, 413, 415, 429),
        422: {
            "model": schemas.Problem,
            "description": "`invalid_rows`: `details` says what is wrong in each row, such as `/grants/3/amount`; or"
            " `idempotency_key_reused`.",
        },
    },
    "openapi_extra": {
        "parameters": [USER_ID, IDEMPOTENCY_KEY],
        "requestBody": _body(
            {
                **BATCH,
                "properties": {**BATCH["properties"], "grants": {**BATCH["properties"]["grants"], "items": GRANT_ROW}},
            },
            {
                "grants": [
                    {"external_id": "user_42", "amount": 100, "reason": "November"},
                    {"external_id": "user_43", "amount": 50, "kind": "bonus", "expires_at": "2030-12-31T23:59:59Z"},
                ],
                "idempotency_key": "november_2026",
            },
        ),
    },
}
GRANT_TOKENS: dict[str, Any] = {
    "summary": "Grant tokens to a user",
    "description": "Makes the user, with its welcome credits, when it is new.",
    "response_model": schemas.Granted,
    "responses": {
        200: {"headers": {"Idempotent-Replayed": REPLAYED}},
        **_errors(402, 404, 408, 413, 415, 429),
        422: {"model": schemas.Problem, "description": "`invalid_expiry`, or `idempotency_key_reused`."},
    },
    "openapi_extra": {
        "parameters": [USER_ID, IDEMPOTENCY_KEY],
        "requestBody": _body(
            GRANT, {"amount": 100, "reason": "Monthly subscription renewal", "idempotency_key": "sub_renewal_2026_11"}
        ),
    },
}
CHECK_TEXT: dict[str, Any] = {
    "summary": "Check a text",
    "description": "Grammar, spelling, wordiness, clichés, passives and repetitions in an English text of at most 100,000 characters"
    " (the installation may set another limit). Free of charge, answered at once, and nothing of it is kept.",
    "response_model": check_schemas.CheckedText,
    "responses": {200: {"headers": LIMITS}, **_errors(408, 413, 415, 429)},
    "openapi_extra": {
        "parameters": [USER_ID],
        "requestBody": _body(
            _without_length(checks.input_schema(0)),
            {**CHECK.input_schema["examples"][0], "types": ["grammar", "brevity"]},
        ),
    },
}
