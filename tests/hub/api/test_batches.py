"""Batches at work: each item is delivered and charged, or costs nothing; the batch's end is told once. Through the front door."""

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import MakeTenant, Tenant
from tests.emulators.openai_server import OpenAIServer, Says
from tests.faults.cluster import eventually
from tests.hub.api.distant import OWN, far_server, far_shop, far_worker
from tests.running import Client
from tests.tally import Tally

__all__ = ["far_server", "far_shop", "far_worker"]

BATCHES = "/api/v1/batches"
REFUSED = Says(400, {"error": {"message": "not this one", "code": "invalid_value"}})
EVENTS = "SELECT type, payload FROM limner.event WHERE org_id = %s AND subject_id = %s"


def asked(count: int, **fields: Any) -> dict[str, Any]:
    return {"model": OWN, "items": [{"input": {"prompt": f"hare {n}"}} for n in range(count)], **fields}


async def ended(client: Client, batch_id: str, timeout_s: float = 60) -> Any:
    """The batch's body once it has ended."""

    async def look() -> Any:
        answer = await client.call("GET", f"{BATCHES}/{batch_id}")
        assert answer.status == 200, answer.body
        assert ("retry-after" in answer.headers) == (answer.json["completed_at"] is None)
        return answer.json if answer.json["completed_at"] else None

    return await eventually(look, timeout_s, pause_s=0.1)


async def items_of(client: Client, batch_id: str, **query: str) -> list[Any]:
    """All items, page by page."""
    found: list[Any] = []
    cursor = ""
    more = "".join(f"&{name}={value}" for name, value in query.items())
    while True:
        page = (await client.call("GET", f"{BATCHES}/{batch_id}/items?limit=100&cursor={cursor}{more}")).json
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = page["next_cursor"]


@pytest.mark.parametrize(("count", "failing"), tiers.counts((200, 15), (1000, 80)))
async def test_a_batch_costs_what_succeeded(
    shop: Client, far: OpenAIServer, db: Database, make_tenant: MakeTenant, tenant: Tenant, superuser: psycopg.Connection,
    count: int, failing: int, tally: Tally,
) -> None:  # fmt: skip
    far.then(*[REFUSED] * failing)
    accepted = await shop.call("POST", BATCHES, asked(count))
    batch_id = accepted.json["batch_id"]
    wallet = await acts.wallet(db, tenant)
    body = await ended(shop, batch_id)
    items = await items_of(shop, batch_id)
    receipt = (await shop.call("GET", f"{BATCHES}/{batch_id}/receipt")).json

    assert (accepted.status, accepted.headers["location"]) == (202, f"{BATCHES}/{batch_id}")
    assert accepted.json == {
        "batch_id": batch_id, "status": "running", "total": count, "tokens_held": count, "user_balance": 1000 - count,
    }  # fmt: skip
    assert wallet.available_mc == (1000 - count) * MC
    won = count - failing
    assert (body["status"], body["total"], body["done"], body["tokens_held"]) == ("completed", count, count, 0)
    assert body["progress"] == {"queued": 0, "running": 0, "succeeded": won, "failed": failing, "cancelled": 0}
    assert body["tokens_charged"] == won
    assert [item["index"] for item in items] == list(range(count))
    assert Counter(item["status"] for item in items) == {"succeeded": won, "failed": failing}
    for item in items:
        words = f"hare {item['index']}."
        assert item["tokens_charged"] == (1 if item["status"] == "succeeded" else 0)
        assert item["status"] == "failed" or item["outputs"][0]["text"].endswith(words)
    assert len(await items_of(shop, batch_id, status="failed")) == failing
    assert receipt["credits"] == {
        "held": str(count), "charged": str(won), "returned": str(failing), "on_hold": "0", "refunded": "0",
    }  # fmt: skip
    assert [event["type"] for event in receipt["events"]] == ["batch.completed"]
    assert sum(float(used["credits"]) for used in receipt["usage"]) == won
    told = superuser.execute(EVENTS, [tenant.org_id, UUID(batch_id)]).fetchall()
    assert told == [("batch.completed", {"batch_id": batch_id, "total": count, "succeeded": won, "failed": failing,
                                         "cancelled": 0, "charged_mc": won * MC})]  # fmt: skip
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == ((1000 - won) * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}
    tally("B20", items=count, failed=failing, charged=won)


@pytest.mark.parametrize("count", tiers.counts(60, 600))
async def test_a_cancelled_batch_delivers_and_charges_an_item_or_gives_its_hold_back(
    shop: Client, far: OpenAIServer, db: Database, tenant: Tenant, superuser: psycopg.Connection, count: int
) -> None:
    far.then(*[None] * 12)
    far.always("stalls")
    batch_id = (await shop.call("POST", BATCHES, asked(count))).json["batch_id"]

    async def delivered() -> bool:
        return bool((await shop.call("GET", f"{BATCHES}/{batch_id}")).json["progress"]["succeeded"] >= 3)

    await eventually(delivered)
    answers = await asyncio.gather(*(shop.call("POST", f"{BATCHES}/{batch_id}/cancel") for _ in range(3)))
    body = await ended(shop, batch_id)
    again = await shop.call("POST", f"{BATCHES}/{batch_id}/cancel")
    items = await items_of(shop, batch_id)

    assert {answer.status for answer in answers} <= {200, 202}
    assert (again.status, again.json["status"]) == (200, "already_cancelled")
    assert body["status"] == "cancelled"
    states = Counter(item["status"] for item in items)
    assert states.keys() == {"succeeded", "cancelled"}
    assert body["progress"] == {"queued": 0, "running": 0, "failed": 0, **states}
    assert all(item["tokens_charged"] == (item["status"] == "succeeded") for item in items)
    told = superuser.execute(EVENTS, [tenant.org_id, UUID(batch_id)]).fetchall()
    assert [kind for kind, _ in told] == ["batch.cancelled"]
    wallet = await acts.wallet(db, tenant)
    assert (wallet.available_mc, wallet.held_mc) == ((1000 - states["succeeded"]) * MC, 0)
    assert await acts.books(db, tenant.org_id) == {}


async def test_a_batch_that_has_ended_cannot_be_cancelled_and_a_deadline_holds_for_each_item(shop: Client) -> None:
    batch_id = (await shop.call("POST", BATCHES, asked(2), headers={"Cancel-After": "10m"})).json["batch_id"]
    body = await ended(shop, batch_id)
    items = await items_of(shop, batch_id)
    refused = await shop.call("POST", f"{BATCHES}/{batch_id}/cancel")

    assert (body["status"], body["progress"]["succeeded"]) == ("completed", 2)
    assert all(item["deadline"] > item["created_at"] for item in items)
    assert (refused.status, refused.json["code"]) == (409, "already_completed")
