"""`/api/v1`: jobs and models. Paths, headers, fields and status codes are a contract with the apps that call them."""

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.db.tx import Tx
from limner.hub import catalog, docs, jobs, receipts, schemas
from limner.hub.submission import Accepted, Submitter
from limner.hub.waiting import WaitingRoom
from limner.kit import ids, money
from limner.media.urls import MediaUrls
from limner.tenancy import end_users
from limner.web import parsing, preferences
from limner.web.caller import Authenticate, Caller
from limner.web.errors import ApiError, not_found

POLL_S = 1
"""Retry-After of a job that is still running, in seconds."""


@dataclass(frozen=True, slots=True)
class HubApi:
    """What the endpoints need."""

    db: Database
    authenticate: Authenticate
    submitter: Submitter
    urls: MediaUrls
    waiting: WaitingRoom


def answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON with times in RFC 3339 UTC."""
    data = orjson.dumps(body, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC)
    return Response(data, status, headers=headers, media_type="application/json")


class JobEndpoints:
    """One method an endpoint: parse, one verb, shape."""

    def __init__(self, api: HubApi) -> None:
        self._api = api

    async def generate(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        if parsing.flag(request, "dry_run"):
            return answer(schemas.dry_run_body(*await self._api.submitter.try_out(request, caller)))
        accepted = await self._api.submitter.submit(request, caller)
        seconds = preferences.wait_s(request, self._api.waiting.longest_s)
        if seconds and "jobs:read" in caller.scopes:
            return await self._after_waiting(request, caller, accepted, seconds)
        return self._accepted(accepted)

    async def _after_waiting(self, request: Request, caller: Caller, accepted: Accepted, seconds: int) -> Response:
        """The job as GET would show it when it has ended in time, else what was accepted."""
        job_id = accepted.submitted.job_id
        ended = await self._api.waiting.until_ended(request, caller, job_id, seconds)
        if not ended:
            response = self._accepted(accepted)
        else:
            async with self._api.db.tenant_tx(caller.org_id) as tx:
                job = await jobs.get(tx, caller.app_id, job_id, caller.external_id)
            response = answer(schemas.job_body(job, self._api.urls), headers=_headers(accepted))
        if ended is not None:
            response.headers["preference-applied"] = f"wait={seconds}"
        return response

    @staticmethod
    def _accepted(accepted: Accepted) -> Response:
        submitted = accepted.submitted
        body = {
            "job_id": submitted.job_id,
            "status": "queued",
            "model": accepted.model,
            "tokens_charged": money.whole(submitted.hold_mc),
            "user_balance": money.whole(submitted.available_mc),
            "estimated_wait_seconds": submitted.wait_s,
        }
        return answer(body, 202, _headers(accepted))

    async def get_job(self, request: Request, job_id: str) -> Response:
        caller = await self._api.authenticate(request)
        job = await _job(self._api, caller, job_id)
        body = schemas.job_body(job, self._api.urls)
        tag = _etag(job, self._api.urls)
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if job.is_open:
            headers["retry-after"] = str(POLL_S)
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return answer(body, headers=headers)

    async def list_jobs(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("jobs:read")
        limit = parsing.page_limit(request)
        status = parsing.choice(request, "status", jobs.STATES)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            await admit_user(tx, caller)
            found = await jobs.list_of_app(
                tx, caller.app_id, external_id=caller.external_id, state=status, limit=limit + 1,
                before=parsing.page_cursor(request),
            )  # fmt: skip
        page = found[:limit]
        return answer(
            {
                "jobs": [schemas.job_body(job, self._api.urls) for job in page],
                "next_cursor": page[-1].id if len(found) > limit else None,
            }
        )

    async def cancel_job(self, request: Request, job_id: str) -> Response:
        caller = await self._api.authenticate(request)
        job = await _job(self._api, caller, job_id, scope="jobs:create")
        async with self._api.db.tenant_single(caller.org_id) as tx:
            outcome = await jobs.cancel(tx, caller.app_id, job.id, job.end_user_id)
        if outcome == "cancelled":
            self._api.submitter.waker.wake(event=True)
        if outcome in {"already_succeeded", "already_failed"}:
            raise ApiError(409, outcome, f"The job has {outcome.removeprefix('already_')} already.")
        return answer({"job_id": job.id, "status": outcome}, 202 if outcome == "requested" else 200)

    async def get_receipt(self, request: Request, job_id: str) -> Response:
        caller = await self._api.authenticate(request)
        caller.require("jobs:read")
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            return answer(await receipts.build(tx, await load_job(tx, caller, job_id)))

    async def list_models(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            models = await catalog.list_models(tx)
        return answer({"models": [schemas.model_body(model) for model in models]})


def router(api: HubApi) -> APIRouter:
    """The router over these resources."""
    routes = APIRouter(prefix="/api/v1", tags=["jobs"])
    endpoints = JobEndpoints(api)
    routes.add_api_route("/generate", endpoints.generate, methods=["POST"], status_code=202, **docs.GENERATE)
    routes.add_api_route("/jobs/{job_id}", endpoints.get_job, methods=["GET"], **docs.GET_JOB)
    routes.add_api_route("/jobs", endpoints.list_jobs, methods=["GET"], **docs.LIST_JOBS)
    routes.add_api_route("/jobs/{job_id}/cancel", endpoints.cancel_job, methods=["POST"], **docs.CANCEL_JOB)
    routes.add_api_route("/jobs/{job_id}/receipt", endpoints.get_receipt, methods=["GET"], **docs.GET_RECEIPT)
    routes.add_api_route("/models", endpoints.list_models, methods=["GET"], **docs.LIST_MODELS)
    return routes


def _headers(accepted: Accepted) -> dict[str, str]:
    submitted = accepted.submitted
    replayed = {"idempotent-replayed": "true"} if submitted.replayed else {}
    return {"location": f"/api/v1/jobs/{submitted.job_id}", **accepted.headers, **replayed}


async def admit_user(tx: Tx, caller: Caller) -> None:
    """A deactivated user is refused whatever it asks for. Raises ApiError 403 `user_inactive`."""
    if caller.external_id is None:
        return
    try:
        await end_users.require_active(tx, caller.app_id, caller.external_id)
    except end_users.UserInactive:
        raise ApiError(403, "user_inactive", "This user is deactivated.") from None


async def _job(api: HubApi, caller: Caller, job_id: str, scope: str = "jobs:read") -> jobs.Job:
    caller.require(scope)
    async with api.db.tenant_tx(caller.org_id) as tx:
        return await load_job(tx, caller, job_id)


async def load_job(tx: Tx, caller: Caller, job_id: str) -> jobs.Job:
    """The caller's own job, and its user's when it names one. Raises ApiError 404; 403 for a deactivated user."""
    await admit_user(tx, caller)
    parsed = ids.parse(job_id)
    if parsed is None:
        raise not_found("job")
    try:
        return await jobs.get(tx, caller.app_id, parsed, caller.external_id)
    except jobs.JobNotFound:
        raise not_found("job") from None


def _etag(job: jobs.Job, urls: MediaUrls) -> str:
    """Changes with the job's state and progress, and with the hour its URLs are signed for."""
    facts = (job.state, job.percent, job.stage, job.runs, job.cancel_requested_at, job.refunded_mc, job.is_erased)
    signed_for = urls.expiry() if job.outputs else 0
    return f'W/"{hashlib.sha256(repr((job.id, facts, signed_for)).encode()).hexdigest()[:24]}"'
