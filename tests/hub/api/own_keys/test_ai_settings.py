"""An organization's AI settings: they hold where a request leaves the choice open, and nowhere else."""

import asyncio
from typing import Any

import pytest

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.hub.remembered import CACHE_S
from limner.tenancy import api_keys
from tests.hub.api.own_keys.brought import CHAT, PICTURE, Brought, House, Shops

TONE = "Speak plainly, as to a friend."
PATH = "/api/v1/settings/ai"


async def test_settings_are_kept_as_a_whole_and_shown_as_they_are(shops: Shops) -> None:
    shop = await shops()
    nothing = {"default_models": {}, "tone": "", "own_keys_only": False, "byok_fee_percent": 0}
    wanted = {"default_models": {"text.generate": CHAT}, "tone": TONE, "own_keys_only": True}

    assert (await shop.client.call("GET", PATH)).json == nothing
    assert (await shop.client.call("PUT", PATH, wanted)).json == nothing | wanted
    await shop.fee(30)
    assert (await shop.client.call("GET", PATH)).json == nothing | wanted | {"byok_fee_percent": 30}
    assert (await shop.client.call("PUT", PATH, {})).json == nothing | {"byok_fee_percent": 30}


async def test_an_order_by_kind_goes_to_the_default_model_in_the_organizations_tone(shops: Shops, house: House) -> None:
    shop = await shops()
    assert (await _choose(shop, {"text.generate": CHAT, "image.generate": PICTURE}, TONE)).status == 200

    words = await _by_kind(shop, "text.generate", {"prompt": "a hare", "system": "Answer in one word."})
    picture = await _by_kind(shop, "image.generate", {"prompt": "a hare"})

    sent = house.first.asked[-2].body["messages"]
    assert sent[0] == {"role": "system", "content": f"{TONE}\n\nAnswer in one word."}
    assert sent[1]["content"] == "a hare"
    assert (words["model"], words["tone"]) == (CHAT, TONE)
    assert (picture["model"], picture.get("tone")) == (PICTURE, None)
    assert house.first.asked[-1].body["prompt"] == "a hare"


async def test_a_request_that_names_its_model_is_left_alone(shops: Shops, house: House) -> None:
    shop = await shops()
    await _choose(shop, {"text.generate": CHAT}, TONE)

    receipt = await shop.buy(CHAT)

    assert [message["role"] for message in house.first.asked[-1].body["messages"]] == ["user"]
    assert "tone" not in receipt


async def test_a_call_for_default_is_answered_by_the_default_model_as_it_came(shops: Shops, house: House) -> None:
    shop = await shops()
    assert (await shop.ask("default")).status == 404
    shop = await shops()
    await _choose(shop, {"text.generate": CHAT}, TONE)

    answer = await shop.ask("default")

    assert answer.status == 200, answer.body
    assert (await shop.receipt_of(answer))["model"] == CHAT
    assert [message["role"] for message in house.first.asked[-1].body["messages"]] == ["user"]


@pytest.mark.long
async def test_an_order_by_kind_sent_again_is_the_same_order_in_whatever_tone(shops: Shops) -> None:
    """The tone is of the organization, not of the request: it is no part of what makes two requests the same."""
    shop = await shops()
    order = {"kind": "text.generate", "input": {"prompt": "a hare"}, "idempotency_key": "again"}
    await _choose(shop, {"text.generate": CHAT}, TONE)
    first = await shop.client.call("POST", "/api/v1/generate", order)
    await _choose(shop, {"text.generate": CHAT}, "Another tone.")
    await asyncio.sleep(CACHE_S)

    again = await shop.client.call("POST", "/api/v1/generate", order)

    assert (first.status, again.status, again.headers.get("idempotent-replayed")) == (202, 202, "true")
    assert again.json["job_id"] == first.json["job_id"]


async def test_what_cannot_be_a_default_is_refused_by_its_kind(shops: Shops, db: Database) -> None:
    mine, theirs = await shops(), await shops()
    async with db.tenant_tx(theirs.tenant.org_id, "limner_operator") as tx:
        await catalog.put_model(tx, {"name": "theirs/own", "display_name": "T", "kind": "text.generate", "price_mc": 0,
                                     "input_schema": offers.SCHEMAS["text.generate"]})  # fmt: skip

    for models, pointer in (
        ({"text.generate": "nothing/here"}, "/default_models/text.generate"),
        ({"text.generate": "theirs/own"}, "/default_models/text.generate"),
        ({"image.generate": CHAT}, "/default_models/image.generate"),
        ({"text.generate": "a\u0007b"}, "/default_models/text.generate"),
    ):
        answer = await _choose(mine, models, "")
        assert (answer.status, answer.json["code"]) == (400, "model_not_supported"), answer.body
        assert list(answer.json["details"]) == [pointer]
    for body in (
        {"tone": "a\u0007b"},
        {"tone": "x" * 2001},
        {"byok_fee_percent": 0},
        {"default_models": {"A B": CHAT}},
    ):
        assert (await mine.client.call("PUT", PATH, body)).status == 400


async def test_an_order_by_kind_without_a_default_says_what_is_missing(shops: Shops) -> None:
    shop = await shops()

    none = await shop.client.call("POST", "/api/v1/generate", {"kind": "text.generate", "input": {"prompt": "x"}})
    both = await shop.client.generate(CHAT, kind="text.generate", input={"prompt": "x"})
    neither = await shop.client.call("POST", "/api/v1/generate", {"input": {"prompt": "x"}})

    assert (none.status, none.json["code"], list(none.json["details"])) == (400, "no_default_model", ["/kind"])
    assert (both.status, list(both.json["details"])) == (400, ["/kind"])
    assert (neither.status, list(neither.json["details"])) == (400, ["/model"])


async def test_settings_take_a_key_with_the_scope(shops: Shops, db: Database) -> None:
    shop = await shops()
    async with db.tenant_tx(shop.tenant.org_id, "limner_operator") as tx:
        scopes = tuple(scope for scope in api_keys.SCOPES if scope != "settings:write")
        _, shop.client.api_key = await api_keys.create(tx, shop.tenant.app, actor="test", scopes=scopes)

    answers = [await shop.client.call("GET", PATH), await shop.client.call("PUT", PATH, {})]

    assert [(answer.status, answer.json["code"]) for answer in answers] == [(403, "missing_scope")] * 2


async def _choose(shop: Brought, models: dict[str, str], tone: str) -> Any:
    return await shop.client.call("PUT", PATH, {"default_models": models, "tone": tone})


async def _by_kind(shop: Brought, kind: str, wanted: dict[str, Any]) -> Any:
    accepted = await shop.client.call("POST", "/api/v1/generate", {"kind": kind, "input": wanted})
    assert accepted.status == 202, accepted.body
    await shop.client.finished(accepted.json["job_id"])
    return await shop.receipt(accepted.json["job_id"])
