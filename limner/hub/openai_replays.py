"""A call whose idempotency key was used before: its answer again, as it was given, and nothing asked of anybody."""

from typing import Any

from starlette.responses import Response

from limner.db.pools import Database
from limner.hub import jobs
from limner.hub.endings import REQUESTS_FAULT, STATUSES
from limner.hub.jobs import Submitted
from limner.hub.providers.verdicts import VERDICTS
from limner.kit import money
from limner.web.caller import Caller
from limner.web.errors import ApiError

MAX_KEPT_BYTES = 1024 * 1024
"""Of an answer that is kept for its key; of a longer one nothing is."""


def kept(body: bytes, media_type: str) -> list[dict[str, Any]]:
    """An answer as an output of its job. Nothing where it is too long, or no text."""
    if len(body) > MAX_KEPT_BYTES:
        return []
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return []
    return [{"index": 0, "type": "text", "text": text, "facts": {"media_type": media_type}}]


async def replay(db: Database, caller: Caller, submitted: Submitted) -> Response:
    """The answer of that call. Raises ApiError: as the call did; 409 while it lasts, and where its answer is not kept."""
    async with db.tenant_tx(caller.org_id) as tx:
        job = await jobs.get(tx, caller.app_id, submitted.job_id)
    told = {"job_id": str(job.id)}
    if job.is_open:
        words = "A call with this idempotency key is being answered."
        raise ApiError(409, "idempotency_key_in_use", words, extra=told, headers={"Retry-After": "1"})
    if job.state != "succeeded":
        code = job.error_code or job.state
        raise ApiError(_status(code), code, job.error_message or "The call failed.", extra=told)
    if not job.outputs:
        words = "This idempotency key was used, and the answer is not kept."
        raise ApiError(409, "idempotency_answer_gone", words, extra=told)
    (answer,) = job.outputs
    headers = {
        "idempotent-replayed": "true",
        "x-limner-job": str(job.id),
        "x-limner-provider": job.provider_used or "",
        "x-limner-credits": str(money.exact(job.charged_mc)),
    }
    return Response(answer["text"], headers=headers, media_type=answer["facts"]["media_type"])


def _status(code: str) -> int:
    if code in REQUESTS_FAULT:
        return 400
    return STATUSES[VERDICTS[code][1]] if code in VERDICTS else 502
