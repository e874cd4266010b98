"""What a webhook says: one body for every event, with the fields that the first sketch of the API had at the top level.

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
TERMINAL = frozenset({events.JOB_COMPLETED, events.JOB_FAILED, events.JOB_CANCELLED})
TOP = ("job_id", "status", "user_id", "outputs", "tokens_charged", "completed_at")
JOB = """
SELECT j.id, j.model, j.state, j.outputs, j.price_hold_mc, j.price_final_mc, j.provider_used, j.error_code, j.error_message, j.traceparent,
       j.created_at, j.finished_at, u.external_id
  FROM limner.job j LEFT JOIN limner.end_user u ON u.org_id = j.org_id AND u.id = j.end_user_id
 WHERE j.org_id = %s AND j.id = %s
"""


class Bodies:
    """Composes messages; `urls` sign for URL_LIFE_S."""

    def __init__(self, urls: MediaUrls) -> None:
        self._urls = urls

    async def compose(self, tx: Tx, event: Event) -> Message:
        """The event as JSON: `{type, timestamp, data}`, and for a job its facts beside them."""
        row = await tx.find(JOB, [tx.org_id, event.subject_id]) if event.type.startswith("job.") else None
        if row is None:
            return Message(_json(event, event.payload, {}))
        if event.type not in TERMINAL:  # only what the event knew: by now the job may be further
            known = {"job_id": row["id"], "status": "running", "user_id": row["external_id"]}
            return Message(_json(event, {**event.payload, **known, "model": row["model"]}, known), row["traceparent"])
        job = self._job(row)
        return Message(_json(event, job, {name: job[name] for name in TOP}), row["traceparent"])

    def _job(self, row: Row) -> dict[str, Any]:
        charged_mc = row["price_hold_mc"] if row["price_final_mc"] is None else row["price_final_mc"]
        job: dict[str, Any] = {
            "job_id": row["id"],
            "status": row["state"],
            "model": row["model"],
            "user_id": row["external_id"],
            "outputs": [schemas.output_body(item, self._urls) for item in row["outputs"] or []],
            "tokens_charged": money.whole(charged_mc),
            "provider_used": row["provider_used"],
            "created_at": row["created_at"],
            "completed_at": row["finished_at"],
        }
        if row["error_code"] is not None:
            job["error"] = {"code": row["error_code"], "message": row["error_message"]}
        if row["state"] == "succeeded" and row["outputs"] is None:
            job["erased"] = True
        return job


def _json(event: Event, data: dict[str, Any], top: dict[str, Any]) -> bytes:
    body = {"type": event.type, "timestamp": event.created_at, "data": data, "event": event.type, **top}
    return orjson.dumps(body, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC)
