"""`/v1/images/…`: jobs that the queue's workers do, waited for, and answered as OpenAI's clients read them."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from limner.db.pools import Database
from limner.hub import openai_forms, submission
from limner.hub.api import answer
from limner.hub.live import LiveBoard
from limner.hub.openai_orders import Orders
from limner.hub.pricing import MAX_OUTPUTS_FIELD
from limner.hub.submission import Submitter
from limner.media.store import ObjectStore
from limner.media.urls import MediaUrls
from limner.web import parsing
from limner.web.caller import Authenticate, Caller
from limner.web.errors import invalid

GENERATE = "image.generate"
EDIT = "image.edit"
VARY = "image.variations"
PICTURES = ("image", "image[]")
TEXTS = ("prompt", "user", "model", "size")
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
        self._orders = Orders(api.db, api.submitter, api.board, NAMES)

    async def generate(self, request: Request) -> Response:
        caller = await self._api.authenticate(request)
        return await self._make(request, caller, await parsing.json_object(request), GENERATE, {})

    async def edit(self, request: Request) -> Response:
        return await self._make_of_form(request, EDIT, (*PICTURES, "mask"))

    async def vary(self, request: Request) -> Response:
        return await self._make_of_form(request, VARY, ("image",))

    async def _make_of_form(self, request: Request, kind: str, fields: tuple[str, ...]) -> Response:
        caller = await self._api.authenticate(request)
        several = PICTURES if kind == EDIT else ()
        form = await openai_forms.read(request, self._api.max_image_bytes, files=fields, texts=TEXTS, several=several)
        pictures = sorted(
            (mark for name in PICTURES for mark in form.marks.get(name, ())),
            key=lambda mark: int(mark.partition(":")[2]),
        )  # in the order they came in
        if not pictures:
            raise invalid({"/image": ["is required: the picture, as a file"]}, message="Send a picture.")
        value = form.value | {"images": pictures} | ({"mask": form.marks["mask"][0]} if "mask" in form.marks else {})
        return await self._make(request, caller, value, kind, form.files)

    async def _make(
        self, request: Request, caller: Caller, value: Mapping[str, Any], kind: str, files: Mapping[str, bytes]
    ) -> Response:
        caller = submission.for_its_user(caller, value.get("user"))
        as_url = _format(value) == "url"
        fields = await self._orders.fields(caller, value.get("model"), kind)
        made = await self._orders.make(request, caller, value["model"], _input(value, fields), files)
        job = made.job
        pictures = [await self._picture(item, as_url=as_url) for item in job.outputs or [] if "key" in item]
        created = int((job.finished_at or job.created_at).timestamp())
        return answer({"created": created, "data": pictures}, headers=made.headers)

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
