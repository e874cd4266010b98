"""From a request's body to an accepted batch: every item is parsed and priced before anything is held, then all go in one commit."""

import asyncio
import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

import orjson
from starlette.requests import Request

from limner.db.pools import Database
from limner.hub import batches, submission
from limner.hub.batches import Submitted, Wanted
from limner.hub.jobs import Submission
from limner.hub.schema import ENVELOPE as JOB
from limner.hub.schema import MAX_REPORTED, InputSchema
from limner.hub.submission import Common, Submitter
from limner.ledger import refusals
from limner.web import parsing
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid

PRIORITY = 50
"""Behind the app's own jobs, which are ordered at 10 unless they say otherwise."""
TIMES = 5
"""A batch's body may hold so many times as many values as another."""
BREATH = 50
"""Items that are parsed before others get their turn of the process."""
ENVELOPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "model": {**JOB["properties"]["model"], "description": "Of every item that names none itself."},
        "items": {
            "type": "array", "minItems": 1, "items": {"type": "object"},
            "description": "`{\"input\": …, \"model\": …}` each, as of single jobs; at most 1,000 (LIMNER_MAX_BATCH_ITEMS).",
        },
        "priority": {
            **JOB["properties"]["priority"], "default": PRIORITY,
            "description": "Order among your own app's waiting jobs: lower goes first. Single jobs have 10.",
        },
        "run_at": JOB["properties"]["run_at"],
        "webhook_url": {
            **JOB["properties"]["webhook_url"],
            "description": "Where to tell of the batch's end, signed with the app's own webhook secret. A public https address.",
        },
        "idempotency_key": {
            **JOB["properties"]["idempotency_key"],
            "description": "Sending the same batch again with the same key never makes a second one.",
        },
    },
    "required": ["items"],
    "additionalProperties": False,
}  # fmt: skip
ITEM: dict[str, Any] = {
    "type": "object",
    "properties": {name: JOB["properties"][name] for name in ("model", "input")},
    "required": ["input"],
    "additionalProperties": False,
}


class BatchSubmitter:
    """Takes `POST /api/v1/batches` of authenticated callers: at most `most` items, with pictures of `most_bytes` together."""

    def __init__(self, db: Database, submitter: Submitter, most: int, most_bytes: int) -> None:
        self._db = db
        self._submitter = submitter
        self._most = most
        self._most_bytes = most_bytes
        self._envelope = InputSchema(ENVELOPE)
        self._item = InputSchema(ITEM)

    async def submit(self, request: Request, caller: Caller) -> Submitted:
        """Accept all items, or find the batch its idempotency key stands for. Raises ApiError; nothing is stored or held then."""
        wanted = await self._read(request, caller)
        try:
            submitted = await batches.submit(self._db, caller.org_id, wanted)
        except refusals.Refused as error:
            raise submission.worded(error, wanted.items[0]) from None
        request.state.log |= {"batch": submitted.batch_id, "items": submitted.items}
        self._submitter.waker.wake()
        return submitted

    async def _read(self, request: Request, caller: Caller) -> Wanted:
        submission.payer(caller)
        _, body = await parsing.json_body(request, TIMES)
        envelope = self._envelope.parse(body)
        given = envelope["items"]
        if len(given) > self._most:
            raise invalid({"/items": [f"has {len(given)} items; at most {self._most}"]})
        key = parsing.idempotency_key(request, envelope.pop("idempotency_key", None))
        webhook_url = envelope.get("webhook_url")
        if webhook_url is not None:
            self._submitter.check_webhook(webhook_url)
        common = self._submitter.common(request, caller, envelope)
        items = await self._items(given, common, envelope.get("model"))
        return Wanted(items, key, hashlib.sha256(_canonical(items, common, webhook_url)).digest(), webhook_url)

    async def _items(self, given: list[Mapping[str, Any]], common: Common, model: str | None) -> list[Submission]:
        """Raises ApiError 400 with what is wrong in each, by the item's place."""
        wrong: dict[str, list[str]] = {}
        items: list[Submission] = []
        size = 0
        for place, value in enumerate(given):
            if place % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            try:
                items.append(await self._one(value, common, model))
            except ApiError as error:
                if error.status >= 500:
                    raise
                told = error.details or {"/model": [error.message]}
                wrong |= {f"/items/{place}{pointer}": list(texts) for pointer, texts in told.items()}
                if len(wrong) >= MAX_REPORTED:
                    break
                continue
            size += sum(len(blob.data) for _, blob in items[-1].images)
            if size > self._most_bytes:
                raise invalid(
                    {f"/items/{place}/input": [f"the batch's uploads have more than {self._most_bytes} bytes"]}
                )
        if wrong:
            first = dict(islice(wrong.items(), MAX_REPORTED))
            raise invalid(first, "invalid_items", "Some items are wrong: nothing was ordered.")
        return items

    async def _one(self, value: Mapping[str, Any], common: Common, model: str | None) -> Submission:
        """An item as a job; `model` where it names none itself. Raises ApiError, with pointers into the item."""
        item = self._item.parse(value)
        name = item.get("model", model)
        if name is None:
            raise invalid({"/model": ["is required, here or for the whole batch"]})
        _refuse_data(item["input"])
        return await self._submitter.order(
            common, await self._submitter.model(common.caller.org_id, name), item["input"]
        )


def _refuse_data(given: Mapping[str, Any]) -> None:
    """Pictures come to a batch by name: a body full of them would be decoded one by one while its client waits."""
    images = given.get("images")
    found = {f"/input/images/{place}": one for place, one in enumerate(images if isinstance(images, list) else ())}
    named = found | {"/input/mask": given.get("mask")}
    wrong = [pointer for pointer, text in named.items() if isinstance(text, str) and text[:5].lower() == "data:"]
    if wrong:
        raise invalid({pointer: ["must be upload:<id> or an https URL in a batch"] for pointer in wrong})


def _canonical(items: list[Submission], common: Common, webhook_url: str | None) -> bytes:
    """What makes two batches the same."""
    hashed: dict[str, Any] = {
        "items": [[item.model, item.input] for item in items], "priority": common.priority, "run_at": common.run_at,
        "webhook_url": webhook_url, "cancel_after_s": common.asked_s,
    }  # fmt: skip
    return orjson.dumps(hashed, option=orjson.OPT_SORT_KEYS)
