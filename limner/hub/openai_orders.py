"""Jobs that a call of `/v1` orders and waits for: submitted to the queue's workers, followed to their end, refused in OpenAI's words."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from limner.db.pools import Database
from limner.hub import events, jobs
from limner.hub.chat import no_model
from limner.hub.endings import REQUESTS_FAULT
from limner.hub.jobs import Job
from limner.hub.live import LiveBoard
from limner.hub.submission import Accepted, Submitter
from limner.kit import money
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid, openai_limits

WAIT_S = 300.0
"""How long a client is kept waiting: its job is cancelled then, and costs nothing unless it is done by that moment."""
LOOK_S = 15.0
CANNOT = {
    "image.generate": "makes no pictures", "image.edit": "edits no pictures", "image.variations": "makes no variations of pictures",
    "audio.transcribe": "transcribes no recordings",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """A job that succeeded, as it was accepted and as it is now."""

    accepted: Accepted
    job: Job

    @property
    def headers(self) -> dict[str, str]:
        """What the answer tells of it."""
        submitted, job = self.accepted.submitted, self.job
        left_mc = submitted.available_mc + job.price_hold_mc - job.charged_mc
        told = openai_limits(self.accepted.headers) | {
            "x-limner-job": str(job.id), "x-limner-provider": job.provider_used or "",
            "x-limner-credits": str(money.exact(job.charged_mc)), "x-limner-balance": str(money.exact(left_mc)),
        }  # fmt: skip
        return told | ({"idempotent-replayed": "true"} if submitted.replayed else {})


class Orders:
    """Takes orders of authenticated callers. `names`: what a field of a model's is called in a call, where it has another name."""

    def __init__(self, db: Database, submitter: Submitter, board: LiveBoard, names: Mapping[str, str]) -> None:
        self._db = db
        self._submitter = submitter
        self._board = board
        self._names = names

    async def fields(self, caller: Caller, name: Any, kind: str) -> Mapping[str, Any]:
        """What the model of this name takes, by field. Raises ApiError 400 and 404."""
        if not isinstance(name, str) or not name:
            raise invalid({"/model": ["is required: the name of a model"]}, message="Name a model.")
        try:
            model = (await self._submitter.model(caller.org_id, name)).row
        except ApiError:
            raise no_model(name) from None
        if model.kind != kind:
            raise invalid({"/model": [f"{CANNOT[kind]}: it is a model of {model.kind}"]}, "model_not_supported")
        found: Mapping[str, Any] = model.input_schema.get("properties", {})
        return found

    async def make(
        self, request: Request, caller: Caller, name: str, asked: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> Made:
        """The job of this input, at its end. Raises ApiError: what a submit raises, 409, 502, 504."""
        try:
            accepted = await self._submitter.submit(request, caller, {"model": name, "input": asked}, files)
        except ApiError as error:
            raise self._in_its_words(error) from None
        job = await self._wait(caller, accepted.submitted)
        if job.state != "succeeded":
            raise _not_made(job)
        return Made(accepted, job)

    async def _wait(self, caller: Caller, submitted: jobs.Submitted) -> Job:
        """The job at its end. Raises ApiError 504 when it takes too long; it is cancelled then."""
        board = self._board
        board.admit(caller.app_id)
        until = time.monotonic() + WAIT_S
        with board.follow(caller.org_id, caller.app_id, submitted.job_id, 0) as follower:
            while time.monotonic() < until and not board.closing:
                news, _ = await follower.wait(LOOK_S)
                if news and any(event.type not in events.TERMINAL for event in news) and len(news) == 1:
                    continue
                if not (job := await self._job(caller, submitted)).is_open:
                    return job
        async with self._db.tenant_single(caller.org_id) as tx:
            await jobs.cancel(tx, caller.app_id, submitted.job_id)
        await asyncio.sleep(0)
        job = await self._job(caller, submitted)
        if job.state == "succeeded":
            return job
        raise ApiError(504, "timeout", f"The job took longer than {WAIT_S:g} s.", extra={"job_id": str(job.id)})

    async def _job(self, caller: Caller, submitted: jobs.Submitted) -> Job:
        async with self._db.tenant_tx(caller.org_id) as tx:
            return await jobs.get(tx, caller.app_id, submitted.job_id)

    def _in_its_words(self, error: ApiError) -> ApiError:
        """A refusal of a job, with the fields called as in this interface."""
        if error.details is None:
            return error
        details: dict[str, list[str]] = {}
        for pointer, texts in error.details.items():
            name, slash, rest = pointer.removeprefix("/input/").partition("/")
            known = pointer.startswith("/input/")
            details[f"/{self._names.get(name, name)}{slash}{rest}" if known else pointer] = list(texts)
        return ApiError(
            error.status, error.code, error.message, details=details, extra=error.extra, headers=error.headers
        )


def _not_made(job: Job) -> ApiError:
    """Of a job that was cancelled, clients are told not to order it again by themselves, which they would after a 409."""
    extra = {"job_id": str(job.id)}
    if job.state == "cancelled":
        return ApiError(409, "cancelled", "The job was cancelled.", extra=extra, headers={"x-should-retry": "false"})
    status = 400 if job.error_code in REQUESTS_FAULT else 502
    return ApiError(status, job.error_code or job.state, job.error_message or "The job failed.", extra=extra)
