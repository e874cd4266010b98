"""What a webhook says: the event as the log tells it, and beside it the facts of its job.

Made when it is sent, so that its URLs live for a day from then.
"""

from typing import Any

import orjson

from limner.db.tx import Row, Tx
from limner.events.delivering import Message
from limner.events.log import Event
from limner.hub import events, schemas
from limner.kit import money
from limner.media.urls import MediaUrls

URL_LIFE_S = 86_400
JOB = """
SELECT j.id, j.model, j.state, j.outputs, j.price_hold_mc, j.price_final_mc, j.error_code, j.error_message, j.traceparent, j.finished_at,
       u.external_id
  FROM limner.job j LEFT JOIN limner.end_user u ON u.org_id = j.org_id AND u.id = j.end_user_id
 WHERE j.org_id = %s AND j.id = %s
"""


class Bodies:
    """Composes messages; `urls` sign for URL_LIFE_S."""

    def __init__(self, urls: MediaUrls) -> None:
        self._urls = urls

    async def compose(self, tx: Tx, event: Event) -> Message:
        """`{type, timestamp, data}`, the event's id and place in the log, and of a job's end the job as its owner reads it."""
        body: dict[str, Any] = events.body(event) | {"event": event.type}
        row = await tx.find(JOB, [tx.org_id, event.subject_id]) if event.type.startswith("job.") else None
        if row is None:
            return Message(_json(body))
        body |= {"job_id": row["id"], "status": "running", "user_id": row["external_id"], "model": row["model"]}
        if event.type in events.TERMINAL:  # before that only what the event knew: the job may be further by now
            body |= self._end(row)
        return Message(_json(body), row["traceparent"])

    def _end(self, row: Row) -> dict[str, Any]:
        charged_mc = row["price_hold_mc"] if row["price_final_mc"] is None else row["price_final_mc"]
        facts: dict[str, Any] = {
            "status": row["state"],
            "outputs": [schemas.output_body(item, self._urls) for item in row["outputs"] or []],
            "tokens_charged": money.whole(charged_mc),
            "completed_at": row["finished_at"],
        }
        if row["error_code"] is not None:
            facts["error"] = {"code": row["error_code"], "message": row["error_message"]}
        if row["state"] == "succeeded" and row["outputs"] is None:
            facts["erased"] = True
        return facts


def _json(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC)
