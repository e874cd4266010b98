"""From a request's body to an accepted batch: every item is parsed and priced before anything is held, then all go in one commit."""

import asyncio
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import orjson
from starlette.requests import Request

from limner.db.pools import Database
from limner.hub import batches, inputs, jobs, pricing, submission
from limner.hub.batches import Submitted, Wanted
from limner.hub.jobs import Submission
from limner.hub.providers import texts
from limner.hub.providers.base import Blob
from limner.hub.schema import ENVELOPE as JOB
from limner.hub.schema import MAX_REPORTED, InputSchema
from limner.hub.submission import Submitter
from limner.hub.waits import Order
from limner.ledger import refusals
from limner.web import parsing, preferences
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


@dataclass(frozen=True, slots=True)
class Common:
    """What all items of a batch share. `asked_s`: the deadline it asks for."""

    caller: Caller
    external_id: str | None
    model: str | None
    priority: int
    run_at: datetime | None
    ahead_s: float
    asked_s: int | None
    limits: jobs.Limits
    request_id: str
    traceparent: str | None


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
        external_id = submission.payer(caller)
        _, body = await parsing.json_body(request, TIMES)
        envelope = self._envelope.parse(body)
        given = envelope["items"]
        if len(given) > self._most:
            raise invalid({"/items": [f"has {len(given)} items; at most {self._most}"]})
        key = parsing.idempotency_key(request, envelope.pop("idempotency_key", None))
        webhook_url = envelope.get("webhook_url")
        if webhook_url is not None:
            self._submitter.check_webhook(webhook_url)
        run_at = parsing.moment_at("/run_at", envelope["run_at"]) if "run_at" in envelope else None
        common = Common(
            caller, external_id, envelope.get("model"), envelope["priority"], run_at, self._submitter.ahead_s(run_at),
            preferences.cancel_after_s(request), self._submitter.limits.of(caller.quotas, for_user=external_id is not None),
            request.state.request_id, parsing.traceparent(request),
        )  # fmt: skip
        items = await self._items(given, common)
        return Wanted(items, key, hashlib.sha256(_canonical(items, common, webhook_url)).digest(), webhook_url)

    async def _items(self, given: list[Mapping[str, Any]], common: Common) -> list[Submission]:
        """Raises ApiError 400 with what is wrong in each, by the item's place."""
        wrong: dict[str, list[str]] = {}
        items: list[Submission] = []
        size = 0
        for place, value in enumerate(given):
            if place % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            try:
                items.append(await self._one(value, common))
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

    async def _one(self, value: Mapping[str, Any], common: Common) -> Submission:
        """An item as a job. Raises ApiError, with pointers into the item."""
        item = self._item.parse(value)
        name = item.get("model", common.model)
        if name is None:
            raise invalid({"/model": ["is required, here or for the whole batch"]})
        caller = common.caller
        model = await self._submitter.model(caller.org_id, name)
        if model.row.kind in texts.BY_CALLS:
            raise invalid({"/model": ["takes no jobs: POST /v1/moderations"]})
        parsed = submission.parsed_by(model, item["input"])
        price_mc = submission.foreseen_mc(model.row, item["input"], parsed)
        _refuse_data(parsed)
        recorded = parsed
        blobs: list[tuple[str, Blob]] = []
        if any(field in parsed for field in inputs.FIELDS):
            recorded, blobs = await self._submitter.images.take(caller, parsed, submission.NO_FILES)
        order = Order(caller.org_id, caller.app_id, model.row.name, common.priority)
        deadline_s = min(common.asked_s or model.row.deadline_s, model.row.deadline_s)
        return Submission(
            app_id=caller.app_id,
            external_id=common.external_id,
            route=submission.ROUTE,
            model_id=model.row.id,
            model=model.row.name,
            kind=model.row.kind,
            unit_price_mc=model.row.price_mc,
            hold_mc=self._submitter.timed_mc(model.row, recorded, price_mc),
            token_prices=pricing.kept_with_orders(model.row),
            priority=common.priority,
            idempotency_key=None,
            request_hash=b"",
            input=recorded,
            images=blobs,
            wait_s=math.ceil(common.ahead_s) + await self._submitter.waits.get(order, model.row.expected_s),
            deadline_s=deadline_s,
            cancel_after_s=None if common.asked_s is None else deadline_s,
            max_runs=self._submitter.limits.max_runs,
            request_id=common.request_id,
            traceparent=common.traceparent,
            run_at=common.run_at if common.ahead_s else None,
            limits=common.limits,
        )


def _refuse_data(parsed: Mapping[str, Any]) -> None:
    """Pictures come to a batch by name: a body full of them would be decoded one by one while its client waits."""
    images = parsed.get("images")
    found = {f"/input/images/{place}": one for place, one in enumerate(images if isinstance(images, list) else ())}
    named = found | {"/input/mask": parsed.get("mask")}
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
