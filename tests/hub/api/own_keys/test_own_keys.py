"""Organizations' own keys, through the front door: whose key goes where, what that costs, and what the receipt tells."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
import pytest

from limner.db.pools import Database
from limner.hub.providers.texts import FRAME_TOKENS
from limner.tenancy import api_keys
from tests.conftest import Server
from tests.emulators.openai_server import Says
from tests.faults.cluster import eventually
from tests.hub.api.own_keys.brought import (
    CHAT,
    CHATTING_MC,
    FIRST,
    INPUT_MC,
    OUTPUT_MC,
    PICTURE,
    PICTURE_MC,
    PLATFORMS,
    SECOND,
    House,
    Shops,
)
from tests.hub.api.test_batches import ended, items_of
from tests.running import Api, Client

HELLO = [{"role": "user", "content": "a lighthouse"}]
OWN, OTHER = "sk-mine-31c7f2b09ade", "sk-other-88d10e6a5b4f"
DENIED = Says(401, {"error": {"message": "no such key", "code": "invalid_api_key"}})
BROKEN = Says(500, {"error": {"message": "oh"}})


def credits_of(receipt: Any) -> tuple[float, float]:
    """Held and charged."""
    return float(receipt["credits"]["held"]), float(receipt["credits"]["charged"])


async def test_a_key_is_told_by_its_end_and_its_mark_and_by_nothing_else(shops: Shops, house: House) -> None:
    shop = await shops()

    put = await shop.bring(FIRST, OWN)
    told = await shop.client.call("GET", f"/api/v1/provider-keys/{FIRST}")
    listed = await shop.client.call("GET", "/api/v1/provider-keys")

    assert put.status == 200, put.body
    assert (put.json["last4"], put.json["enabled"], put.json["sent_to"]) == ("9ade", True, house.first.origin)
    assert told.json == put.json
    assert listed.json == {"provider_keys": [put.json]}
    assert len(put.json["fingerprint"]) == 16
    assert all(OWN not in answer.body.decode() for answer in (put, told, listed))
    again = await shop.bring(FIRST, OTHER)
    assert again.json["fingerprint"] != put.json["fingerprint"]
    assert (await shop.bring(FIRST, OWN)).json["fingerprint"] == put.json["fingerprint"]


async def test_jobs_and_calls_go_with_the_own_key_and_cost_nothing(shops: Shops, house: House) -> None:
    shop = await shops(only_first=True)
    await shop.bring(FIRST, OWN)

    job = await shop.buy(PICTURE)
    call = await shop.ask()
    stream = await shop.ask(stream=True)
    receipts = [job, await shop.receipt_of(call), await shop.receipt_of(stream)]

    assert shop.keys(house.first) == [OWN] * 3
    assert [credits_of(one) for one in receipts] == [(0, 0)] * 3
    for receipt in receipts:
        assert [attempt["key"] for attempt in receipt["attempts"]] == ["own"]
        assert receipt["own_cost_micro_usd"] == receipt["attempts"][0]["cost_micro_usd"] == 900
        assert "provider_cost_micro_usd" not in receipt
        assert [use.get("cost_micro_usd") for use in receipt["usage"]] == [None] * len(receipt["usage"])
    told = await shop.client.call("GET", f"/api/v1/provider-keys/{FIRST}")
    assert (told.json["last_used_at"] is not None, told.json["last_error"]) == (True, None)


@pytest.mark.parametrize("percent", [25, *(pytest.param(percent, marks=pytest.mark.long) for percent in (0, 100))])
@pytest.mark.parametrize(
    ("keys", "first", "delivers"),
    [
        ((), None, "platform"),
        ((FIRST,), None, "own"),
        ((FIRST,), BROKEN, "platform"),
        ((SECOND,), None, "platform"),
        ((SECOND,), BROKEN, "own"),
        ((FIRST, SECOND), None, "own"),
        ((FIRST, SECOND), BROKEN, "own"),
    ],
    ids=["no key", "own first", "own fails", "platform first", "platform fails", "both own", "both own, one fails"],
)
async def test_the_price_is_of_the_key_that_delivered_and_the_hold_of_all_that_may(
    shops: Shops, house: House, keys: tuple[str, ...], first: Says | None, delivers: str, percent: int
) -> None:
    """For a job of pictures, a job by tokens and a call: held in full wherever the platform may come to work."""
    shop = await shops()
    await shop.fee(percent)
    for provider in keys:
        await shop.bring(provider, OWN)
    house.first.always(first)

    job, words = await shop.buy(PICTURE), await shop.buy(CHAT)
    call = await shop.ask()
    called = await shop.receipt_of(call)

    part = percent if delivers == "own" else 100
    held = percent if len(keys) == 2 else 100
    assert credits_of(job) == (PICTURE_MC * held / 100_000, PICTURE_MC * part / 100_000)
    for receipt in (words, called):
        assert float(receipt["credits"]["charged"]) * 1000 == -(-CHATTING_MC * part // 100)
        assert receipt["attempts"][-1]["key"] == delivers
    assert float(call.headers["x-limner-credits"]) == float(called["credits"]["charged"])
    full = 1000 * float(called["credits"]["held"]) * 100 / held if held else 0
    assert full == 0 or full > CHATTING_MC
    assert set(shop.keys(house.first)) == {OWN if FIRST in keys else PLATFORMS}


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_own_key_never_falls_back_to_the_platforms_at_the_same_provider(
    shops: Shops, house: House, status: int
) -> None:
    shop = await shops()
    await shop.bring(FIRST, OWN)
    house.first.always(Says(status, {"error": {"message": f"Incorrect API key provided: {OWN}"}}))

    job = await shop.buy(PICTURE)
    call, stream = await shop.ask(), await shop.ask(stream=True)
    receipts = [job, await shop.receipt_of(call), await shop.receipt_of(stream)]

    assert set(shop.keys(house.first)) == {OWN}
    assert set(shop.keys(house.second)) == {PLATFORMS}
    for receipt in receipts:
        assert [a["key"] for a in receipt["attempts"]] == ["own", "platform"]
        assert receipt["attempts"][0]["error"]["code"] == "own_key_rejected"
        assert receipt["provider_used"] == SECOND
        assert OWN not in str(receipt)
    assert credits_of(job) == (PICTURE_MC / 1000, PICTURE_MC / 1000)
    told = await shop.client.call("GET", f"/api/v1/provider-keys/{FIRST}")
    assert told.json["last_error"]["code"] == "own_key_rejected"

    house.first.calm_down()
    await shop.bring(FIRST, OTHER)
    assert (await shop.receipt_of(await shop.ask()))["attempts"][0]["outcome"] == "done"


async def test_where_everybody_refuses_the_caller_hears_that_it_is_its_own_key(shops: Shops, house: House) -> None:
    shop = await shops(only_first=True)
    await shop.bring(FIRST, OWN)
    house.first.always(DENIED)

    answer = await shop.ask()

    assert (answer.status, answer.json["error"]["code"]) == (502, "own_key_rejected")


async def test_a_job_held_for_own_keys_waits_for_nobody_elses(shops: Shops, house: House, db: Database) -> None:
    """Its key is taken away while it waits: the platform's would deliver for nothing."""
    shop = await shops(only_first=True)
    await shop.bring(FIRST, OWN)
    later = await shop.client.generate(PICTURE, input={"prompt": "a hare"}, run_at=_in_seconds(shop.db, 1.5))
    assert (await shop.client.call("DELETE", f"/api/v1/provider-keys/{FIRST}")).status == 204

    job = await shop.client.finished(later.json["job_id"])

    assert (later.json["tokens_charged"], job["status"]) == (0, "failed")
    assert shop.keys(house.first) == []


async def test_a_key_that_is_off_is_not_used_and_nobody_is_asked_where_only_own_keys_may_be(
    shops: Shops, house: House
) -> None:
    shop = await shops()
    await shop.bring(FIRST, OWN)
    off = await shop.client.call("PUT", f"/api/v1/provider-keys/{FIRST}", {"enabled": False})
    assert (off.status, off.json["enabled"], off.json["last4"]) == (200, False, OWN[-4:])
    assert (await shop.receipt_of(await shop.ask()))["attempts"][0]["key"] == "platform"

    alone = await shops()
    await alone.bring(SECOND, OWN)
    await alone.own_only()
    receipt = await alone.buy(PICTURE)

    assert [(a["provider"], a["key"]) for a in receipt["attempts"]] == [(SECOND, "own")]
    assert credits_of(receipt) == (0, 0)
    assert alone.keys(house.first) == []

    nobody = await shops()
    await nobody.own_only()
    assert (await nobody.ask()).status == 503


async def test_one_organizations_key_is_nobody_elses(shops: Shops, house: House) -> None:
    """TA12: another tenant sees no trace of it, cannot change it, and its work goes with the platform's key."""
    mine, theirs = await shops(only_first=True), await shops(only_first=True)
    await mine.bring(FIRST, OWN)

    assert (await theirs.client.call("GET", "/api/v1/provider-keys")).json == {"provider_keys": []}
    assert (await theirs.client.call("GET", f"/api/v1/provider-keys/{FIRST}")).status == 404
    assert (await theirs.client.call("DELETE", f"/api/v1/provider-keys/{FIRST}")).status == 404
    assert (await theirs.client.call("PUT", f"/api/v1/provider-keys/{FIRST}", {"enabled": False})).status == 404
    receipts = [await theirs.buy(PICTURE), await theirs.receipt_of(await theirs.ask())]

    assert theirs.keys(house.first) == [PLATFORMS] * 2
    assert [receipt["attempts"][0]["key"] for receipt in receipts] == ["platform"] * 2
    assert (await mine.client.call("GET", f"/api/v1/provider-keys/{FIRST}")).json["last4"] == OWN[-4:]


@pytest.mark.parametrize(
    ("provider", "body", "status", "code"),
    [
        ("no-such-provider", {"key": OWN}, 404, "provider_not_found"),
        ("local", {"key": OWN}, 409, "provider_takes_no_keys"),
        (FIRST, {"key": "tiny-key"}, 400, "invalid_request"),
        (FIRST, {"key": "with a space in its middle"}, 400, "invalid_request"),
        (FIRST, {"key": "k" * 513}, 400, "invalid_request"),
        (FIRST, {"key": OWN, "base_url": "https://evil.example.com"}, 400, "invalid_request"),
        (FIRST, {}, 404, "provider_key_not_found"),
        (SECOND, {"enabled": True}, 404, "provider_key_not_found"),
    ],
)
async def test_what_is_no_key_or_has_no_place_is_refused_without_a_word_of_it(
    shops: Shops, provider: str, body: Any, status: int, code: str
) -> None:
    shop = await shops()

    answer = await shop.client.call("PUT", f"/api/v1/provider-keys/{provider}", body)

    assert (answer.status, answer.json["code"]) == (status, code), answer.body
    assert not body.get("key") or body["key"] not in answer.body.decode()


async def test_only_a_key_with_the_scope_may(shops: Shops, db: Database) -> None:
    shop = await shops()
    async with db.tenant_tx(shop.tenant.org_id, "limner_operator") as tx:
        scopes = tuple(scope for scope in api_keys.SCOPES if scope != "providers:write")
        _, shop.client.api_key = await api_keys.create(tx, shop.tenant.app, actor="test", scopes=scopes)

    answers = [
        await shop.bring(FIRST, OWN),
        *[await shop.client.call(m, f"/api/v1/provider-keys/{FIRST}") for m in ("GET", "DELETE")],
        await shop.client.call("GET", "/api/v1/provider-keys"),
    ]

    assert [(answer.status, answer.json["code"]) for answer in answers] == [(403, "missing_scope")] * 4


def _in_seconds(db: Database, seconds: float) -> str:
    return datetime.fromtimestamp(db.clock.now() + seconds, UTC).isoformat()


@pytest.mark.long
@pytest.mark.parametrize(("keys", "charged"), [((FIRST,), 0.25), ((), 1.0)], ids=["own", "platform"])
async def test_a_call_whose_process_dies_is_charged_by_whose_key_was_at_work(
    shops: Shops, house: House, server: Server, keys: tuple[str, ...], charged: float
) -> None:
    """Of a model whose provider goes on unheard: the estimate, or the fee's part of it."""
    shop = await shops(on_disconnect="estimate")
    await shop.fee(25)
    for provider in keys:
        await shop.bring(provider, OWN)
    house.first.always("stalls")
    env = {"LIMNER_DATABASE_URL": server.url, "LIMNER_EGRESS_PLAIN_ORIGINS": house.first.origin}
    dying = Api(server.home, **env)
    asked = len(house.first.asked)
    client = Client(shop.client.http, dying.url, shop.client.api_key)
    call = asyncio.create_task(client.call("POST", "/v1/chat/completions", {"model": CHAT, "messages": HELLO}))
    await eventually(lambda: len(house.first.asked) > asked)

    dying.kill()
    with pytest.raises(aiohttp.ClientError):
        await call
    [job] = (await shop.client.call("GET", "/api/v1/jobs")).json["jobs"]
    await shop.client.finished(job["job_id"])
    receipt = await shop.receipt(job["job_id"])

    estimate = -(-(_likely() * INPUT_MC + 100 * OUTPUT_MC) // 1_000_000) / 1000
    assert credits_of(receipt)[1] == pytest.approx(estimate * charged, abs=0.02)
    assert [attempt["key"] for attempt in receipt["attempts"]] == ["own" if keys else "platform"]


def _likely() -> int:
    """Tokens that the request above is taken for."""
    return len(orjson.dumps({"model": CHAT, "messages": HELLO})) // 4 + FRAME_TOKENS // 4 + 1


async def test_a_batch_holds_and_costs_what_was_agreed_when_it_was_ordered(shops: Shops) -> None:
    """The fee rises while it waits: that is for what is ordered from then on."""
    shop = await shops(only_first=True)
    await shop.fee(25)
    await shop.bring(FIRST, OWN)
    items = [{"input": {"prompt": f"hare {n}"}} for n in range(2)]
    wanted = {"model": PICTURE, "items": items, "run_at": _in_seconds(shop.db, 1.5)}

    ordered = (await shop.client.call("POST", "/api/v1/batches", wanted)).json
    await shop.fee(75)
    batch = await ended(shop.client, ordered["batch_id"])
    done = await items_of(shop.client, ordered["batch_id"])
    receipts = [await shop.receipt(one["job_id"]) for one in done]

    part = PICTURE_MC * 25 / 100_000
    assert (ordered["tokens_held"], batch["tokens_charged"]) == (2 * part, 2 * part)
    assert [credits_of(one) for one in receipts] == [(part, part)] * 2
