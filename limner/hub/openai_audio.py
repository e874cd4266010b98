"""`/v1/audio/transcriptions`: a form with a recording, made into a job that the queue's workers do, waited for, and answered as
OpenAI's clients read it.
"""

import math
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.hub import openai_forms, submission
from limner.hub.api import answer
from limner.hub.audio_inputs import FIELD
from limner.hub.jobs import Job
from limner.hub.live import LiveBoard
from limner.hub.openai_orders import Orders
from limner.hub.submission import Submitter
from limner.web.caller import Authenticate
from limner.web.errors import invalid

KIND = "audio.transcribe"
FILE = "file"
NAMES = {FIELD: FILE}
FORMATS = ("json", "text", "verbose_json")
TEXTS = ("model", "prompt", "language", "user", "response_format")
IGNORED = frozenset({"model", "user", "response_format", "stream", FIELD})
GRANULARITIES = "timestamp_granularities[]"


@dataclass(frozen=True, slots=True)
class AudioApi:
    """What the endpoint needs."""

    db: Database
    authenticate: Authenticate
    submitter: Submitter
    board: LiveBoard
    max_audio_bytes: int


class AudioEndpoints:
    """One method an endpoint."""

    def __init__(self, api: AudioApi) -> None:
        self._api = api
        self._orders = Orders(api.db, api.submitter, api.board, NAMES)

    async def transcribe(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        form = await openai_forms.read(request, self._api.max_audio_bytes, files=(FILE,), texts=TEXTS)
        value = form.value
        if FILE not in form.marks:
            raise invalid({f"/{FILE}": ["is required: the recording, as a file"]}, message="Send a recording.")
        caller = submission.for_its_user(caller, value.get("user"))
        wanted = _format(value)
        await self._orders.fields(caller, value.get("model"), KIND)
        asked = {name: item for name, item in value.items() if name not in IGNORED}
        asked[FIELD] = form.marks[FILE][0]
        made = await self._orders.make(request, caller, value["model"], asked, form.files)
        [output] = made.job.outputs or [{"text": ""}]
        if wanted == "text":
            return Response(f"{output['text']}\n", media_type="text/plain; charset=utf-8", headers=made.headers)
        return answer(_body(made.job, output, verbose=wanted == "verbose_json"), headers=made.headers)


def _format(value: dict[str, Any]) -> str:
    """Which of the answers is asked for. Raises ApiError 400 for those that there are not."""
    if value.get("stream"):
        raise invalid({"/stream": ["must be false: transcripts are not streamed"]}, "unsupported_parameter")
    if value.pop(GRANULARITIES, "segment") != "segment":
        raise invalid({f"/{GRANULARITIES}": ["must be segment: words have no times here"]}, "unsupported_parameter")
    found = value.get("response_format") or "json"
    if found not in FORMATS:
        raise invalid({"/response_format": [f"must be {', '.join(FORMATS)}"]})
    return str(found)


def _body(job: Job, output: dict[str, Any], *, verbose: bool) -> dict[str, Any]:
    facts = output.get("facts") or {}
    measured_s = job.input.get(FIELD, {}).get("duration_ms", 0) / 1000
    duration = facts.get("duration", measured_s)
    body = {"text": output["text"], "usage": {"type": "duration", "seconds": math.ceil(duration)}}
    if not verbose:
        return body
    spoken = facts.get("language") or job.input.get("language") or ""
    parts = {"segments": facts["segments"]} if "segments" in facts else {}
    return {"task": "transcribe", "language": spoken, "duration": duration, **body, **parts}
