"""`/v1/images/…`: jobs that the queue's workers do, waited for, and answered as OpenAI's clients read them."""

import asyncio
import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.hub import events, jobs, openai_edits, submission
from limner.hub.api import answer
from limner.hub.chat import no_model
from limner.hub.endings import REQUESTS_FAULT
from limner.hub.jobs import Job
from limner.hub.live import LiveBoard
from limner.hub.pricing import MAX_OUTPUTS_FIELD
from limner.hub.submission import Submitter
from limner.kit import money
from limner.media.store import ObjectStore
from limner.media.urls import MediaUrls
from limner.web import parsing
from limner.web.caller import Authenticate, Caller
from limner.web.errors import ApiError, invalid, openai_limits

GENERATE = "image.generate"
EDIT = "image.edit"
WAIT_S = 300.0
"""How long a client is kept waiting: its job is cancelled then, and costs nothing unless it is done by that moment."""
LOOK_S = 15.0
IGNORED = frozenset({"model", "prompt", "n", "size", "response_format", "user", "stream"})
NAMES = {"images": "image", MAX_OUTPUTS_FIELD: "n"}
"""What a field of a model's is called here, where it has another name."""
FORMATS = ("url", "b64_json")


@dataclass(frozen=True, slots=True)
class ImagesApi:
    """What the endpoints need."""

    db: Database
    authenticate: Authenticate
    submitter: Submitter
    board: LiveBoard
    store: ObjectStore
    urls: MediaUrls
    max_image_bytes: int


class ImageEndpoints:
    """One method an endpoint."""

    def __init__(self, api: ImagesApi) -> None:
        self._api = api

    async def generate(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        return await self._make(request, caller, await parsing.json_object(request), GENERATE, {})

    async def edit(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        value, files = await openai_edits.read(request, self._api.max_image_bytes)
        return await self._make(request, caller, value, EDIT, files)

    async def _make(
        self, request: Request, caller: Caller, value: Mapping[str, Any], kind: str, files: Mapping[str, bytes]
    ) -> Response:
        caller = submission.for_its_user(caller, value.get("user"))
        as_url = _format(value) == "url"
        name = value.get("model")
        if not isinstance(name, str) or not name:
            raise invalid({"/model": ["is required: the name of a model"]}, message="Name a model.")
        fields = await self._fields(caller, name, kind)
        try:
            order = {"model": name, "input": _input(value, fields)}
            accepted = await self._api.submitter.submit(request, caller, order, files)
        except ApiError as error:
            raise _in_its_words(error) from None
        job = await self._wait(caller, accepted.submitted)
        if job.state != "succeeded":
            raise _not_made(job)
        left_mc = accepted.submitted.available_mc + job.price_hold_mc - job.charged_mc
        headers = openai_limits(accepted.headers) | {
            "x-limner-job": str(job.id), "x-limner-provider": job.provider_used or "",
            "x-limner-credits": str(money.exact(job.charged_mc)), "x-limner-balance": str(money.exact(left_mc)),
        }  # fmt: skip
        if accepted.submitted.replayed:
            headers["idempotent-replayed"] = "true"
        pictures = [await self._picture(item, as_url=as_url) for item in job.outputs or [] if "key" in item]
        return answer(
            {"created": int((job.finished_at or job.created_at).timestamp()), "data": pictures}, headers=headers
        )

    async def _fields(self, caller: Caller, name: str, kind: str) -> Mapping[str, Any]:
        """What the model takes, by field. Raises ApiError 400 and 404."""
        try:
            model = (await self._api.submitter.model(caller.org_id, name)).row
        except ApiError:
            raise no_model(name) from None
        if model.kind != kind:
            does = "makes no pictures" if kind == GENERATE else "edits no pictures"
            raise invalid({"/model": [does]}, "model_not_supported")
        fields: Mapping[str, Any] = model.input_schema.get("properties", {})
        return fields

    async def _wait(self, caller: Caller, submitted: jobs.Submitted) -> Job:
        """The job at its end. Raises ApiError 504 when it takes too long; it is cancelled then."""
        board = self._api.board
        board.admit(caller.app_id)
        until = time.monotonic() + WAIT_S
        with board.follow(caller.org_id, caller.app_id, submitted.job_id, 0) as follower:
            while time.monotonic() < until and not board.closing:
                news, _ = await follower.wait(LOOK_S)
                if news and any(event.type not in events.TERMINAL for event in news) and len(news) == 1:
                    continue
                if not (job := await self._job(caller, submitted)).is_open:
                    return job
        async with self._api.db.tenant_single(caller.org_id) as tx:
            await jobs.cancel(tx, caller.app_id, submitted.job_id)
        await asyncio.sleep(0)
        job = await self._job(caller, submitted)
        if job.state == "succeeded":
            return job
        raise ApiError(504, "timeout", f"The picture took longer than {WAIT_S:g} s.", extra={"job_id": str(job.id)})

    async def _job(self, caller: Caller, submitted: jobs.Submitted) -> Job:
        async with self._api.db.tenant_tx(caller.org_id) as tx:
            return await jobs.get(tx, caller.app_id, submitted.job_id)

    async def _picture(self, item: Mapping[str, Any], *, as_url: bool) -> dict[str, str]:
        if as_url:
            return {"url": self._api.urls.sign(item["key"])}
        return {"b64_json": base64.b64encode(await self._api.store.read(item["key"])).decode()}


def _input(value: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The request in the words of the model's own schema, for that to judge. Raises ApiError 400.

    A model that reads no prompt, or makes one picture, is not told of the prompt, or of the one, that clients always send.
    """
    if value.get("stream"):
        raise invalid({"/stream": ["must be false: pictures are not streamed"]}, "unsupported_parameter")
    asked = {field: item for field, item in value.items() if field not in IGNORED and item is not None}
    if "prompt" in fields:
        asked["prompt"] = value.get("prompt")
    if (count := value.get("n")) is not None and (MAX_OUTPUTS_FIELD in fields or count != 1):
        asked[MAX_OUTPUTS_FIELD] = count
    size = value.get("size")
    if size is not None and size != "auto":
        asked |= _size(size, fields)
    return asked


def _in_its_words(error: ApiError) -> ApiError:
    """A refusal of a job, with the fields called as in this interface."""
    if error.details is None:
        return error
    details: dict[str, list[str]] = {}
    for pointer, texts in error.details.items():
        name, slash, rest = pointer.removeprefix("/input/").partition("/")
        known = pointer.startswith("/input/")
        details[f"/{NAMES.get(name, name)}{slash}{rest}" if known else pointer] = list(texts)
    return ApiError(error.status, error.code, error.message, details=details, extra=error.extra, headers=error.headers)


def _not_made(job: Job) -> ApiError:
    """Of a job that was cancelled, clients are told not to order it again by themselves, which they would after a 409."""
    extra = {"job_id": str(job.id)}
    if job.state == "cancelled":
        return ApiError(409, "cancelled", "The job was cancelled.", extra=extra, headers={"x-should-retry": "false"})
    status = 400 if job.error_code in REQUESTS_FAULT else 502
    return ApiError(status, job.error_code or job.state, job.error_message or "The picture was not made.", extra=extra)


def _format(value: Mapping[str, Any]) -> str:
    found = value.get("response_format") or "b64_json"
    if found not in FORMATS:
        raise invalid({"/response_format": ["must be url or b64_json"]})
    return str(found)


def _size(size: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Width x height in the words of the model: the text itself, or a long side and a ratio. Raises ApiError 400."""
    known = fields.get("size", {}).get("enum", [])
    if size in known:
        return {"size": size}
    across, _, down = str(size).partition("x")
    if across.isdigit() and down.isdigit() and int(across) > 0 and int(down) > 0:
        width, height = int(across), int(down)
        part = gcd(width, height)
        ratio = f"{width // part}:{height // part}"
        if max(width, height) in known and ratio in fields.get("aspect_ratio", {}).get("enum", []):
            return {"size": max(width, height), "aspect_ratio": ratio}
    shown = ", ".join(str(one) for one in known) or "auto"
    raise invalid({"/size": [f"is none of this model's: {shown}, and the ratios it knows"]})
