"""Jobs of the same providers: submitted over HTTP, worked on by a worker, told by a receipt."""

import json
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from limner.db.pools import Database
from tests import acts
from tests.adapters.counter import Counter, charge_mc
from tests.conftest import MakeTenant
from tests.emulators import anthropic_server, gemini_server
from tests.emulators.far_server import FarServer
from tests.emulators.openai_server import Says, Turn, text_of, vector_of
from tests.running import Api

BUSY = {
    "anthropic": anthropic_server.error(429, "rate_limit_error", "slow down", {"retry-after": "0"}),
    "gemini": gemini_server.error(
        429, "RESOURCE_EXHAUSTED", "slow down", {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0s"}
    ),
}  # fmt: skip
REFUSES: dict[str, Turn] = {
    "anthropic": Says(200, {"type": "message", "id": "msg_1", "content": [], "stop_reason": "refusal", "usage": {}}),
    "gemini": Says(200, {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}}),
}


@pytest_asyncio.fixture
async def google(house: Api, db: Database, make_tenant: MakeTenant, fars: dict[str, FarServer]) -> Counter:
    """What only Gemini has."""
    counter, far = Counter(house, db, await make_tenant(credits=100)), fars["gemini"]
    far.asked.clear()
    await counter.sell("gemini", far, kind="image.generate", model="acme/pictures", theirs="gemini-image")
    await counter.sell("gemini", far, kind="image.edit", model="acme/edits", theirs="gemini-image")
    await counter.sell("gemini", far, kind="text.embed", model="acme/vectors", theirs="gemini-embedding")
    return counter


async def test_a_text_arrives_with_its_tokens_on_the_receipt(counter: Counter, far: FarServer) -> None:
    job, receipt = await counter.buy(prompt="a hare", system="Be brief.", temperature=0.5)

    assert (job["status"], job["provider_used"]) == ("succeeded", "far"), job
    [output] = job["outputs"]
    assert (output["text"], output["facts"]) == (text_of("a hare"), {"finish_reason": "stop"})
    used = {use["kind"]: use["quantity"] for use in receipt["usage"]}
    assert used == {"input_tokens": 12, "output_tokens": 7, "cached_input_tokens": 4}
    assert float(receipt["credits"]["charged"]) == charge_mc(12, 4, 7) / 1000
    sent = json.dumps(far.asked[-1].body)
    assert all(words in sent for words in ("Be brief.", "0.5", ": 100"))
    assert far.asked[-1].headers["X-Client-Request-Id"] == job["job_id"]


async def test_a_picture_is_described(counter: Counter, adapter: str, far: FarServer, photo: str) -> None:
    await counter.sell(adapter, far, kind="image.describe", model="acme/describe")

    job, _ = await counter.buy("acme/describe", images=[photo], prompt="What is it?")

    assert job["status"] == "succeeded", job
    assert job["outputs"][0]["text"] == text_of("What is it?")
    assert photo.partition(",")[2] in json.dumps(far.asked[-1].body)


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        pytest.param(Says(500, {}), "provider_unavailable", marks=pytest.mark.long),
        pytest.param(Says(200, b"<html>"), "provider_answer_invalid", marks=pytest.mark.long),
        pytest.param("busy", "provider_rate_limited", marks=pytest.mark.long),
        pytest.param("hangs up afterwards", "provider_connection_lost", marks=pytest.mark.long),
        pytest.param("breaks off", "provider_connection_lost", marks=pytest.mark.long),
    ],
    ids=["broken", "garbage", "busy", "hangs-up-afterwards", "breaks-off"],
)
async def test_what_passes_is_tried_again_and_charged_once(
    counter: Counter, adapter: str, far: FarServer, db: Database, turn: Any, told: str
) -> None:
    far.then(BUSY[adapter] if turn == "busy" else turn)

    job, receipt = await counter.buy(prompt="a hare")

    assert [a.get("error", {}).get("code") for a in receipt["attempts"]] == [told, None]
    assert [t["kind"] for t in receipt["transfers"]] == ["hold", "post"]
    assert len(far.keys[job["job_id"]]) == 2
    assert await acts.books(db, counter.tenant.org_id) == {}


async def test_mj9_a_server_whose_outcome_stays_unknown_is_asked_twice_and_no_more(
    counter: Counter, far: FarServer
) -> None:
    """What class C promises."""
    far.then("hangs up afterwards", "hangs up afterwards")

    job, receipt = await counter.buy(prompt="a hare")

    assert (job["status"], job["error"]["code"], job["tokens_charged"]) == ("failed", "outcome_unknown", 0)
    assert (len(far.keys[job["job_id"]]), far.drawn[job["job_id"]]) == (2, 2)
    assert receipt["credits"]["after"] == receipt["credits"]["before"]


async def test_what_a_filter_refuses_costs_nothing(counter: Counter, adapter: str, far: FarServer) -> None:
    far.then(REFUSES[adapter])

    job, receipt = await counter.buy(prompt="a hare")

    assert (job["status"], job["error"]["code"], len(far.asked)) == ("failed", "content_refused", 1)
    assert receipt["credits"]["after"] == receipt["credits"]["before"]


async def test_pictures_are_made_and_edited(google: Counter, fars: dict[str, FarServer], photo: str) -> None:
    made, _ = await google.buy("acme/pictures", prompt="a hare", size="1024x1024")
    shape = fars["gemini"].asked[-1].body["generationConfig"]["imageConfig"]
    edited, _ = await google.buy("acme/edits", prompt="a hat", images=[photo, photo])

    assert [job["status"] for job in (made, edited)] == ["succeeded", "succeeded"], (made, edited)
    assert [output["type"] for output in made["outputs"]] == ["image"]
    assert shape == {"imageSize": "1K", "aspectRatio": "1:1"}
    assert sum("inlineData" in part for part in fars["gemini"].asked[-1].body["contents"][0]["parts"]) == 2


@pytest.mark.parametrize("wanted", [{"num_outputs": 2}, {"size": "1536x1024"}], ids=["two", "size"])
async def test_a_picture_that_cannot_be_had_as_asked_is_not_made(
    google: Counter, fars: dict[str, FarServer], wanted: dict[str, Any]
) -> None:
    job, _ = await google.buy("acme/pictures", prompt="a hare", **wanted)

    assert (job["status"], job["error"]["code"], fars["gemini"].asked) == ("failed", "unsupported_input", [])


async def test_vectors_come_through_both_doors(google: Counter, fars: dict[str, FarServer]) -> None:
    job, receipt = await google.buy("acme/vectors", text="a hare")
    async with google.client() as client:
        several = await client.embeddings.create(model="acme/vectors", input=["a hare", "fog"])
        plain = await client.embeddings.create(model="acme/vectors", input="fog", encoding_format="float")

    assert job["outputs"][0]["vector"] == vector_of("a hare")
    assert next((use["kind"], use["quantity"]) for use in receipt["usage"]) == ("input_tokens", 3)
    assert [found.embedding for found in several.data] == [vector_of("a hare"), vector_of("fog")]
    assert (plain.data[0].embedding, plain.usage.prompt_tokens) == (vector_of("fog"), 3)
    assert len(fars["gemini"].asked[-2].body["requests"]) == 2


async def test_pictures_come_through_openais_door(google: Counter) -> None:
    async with google.client() as client:
        made = await client.images.generate(model="acme/pictures", prompt="a hare", size="1024x1024")

    assert made.data is not None
    assert (made.data[0].b64_json or "").startswith("iVBOR")


async def test_anthropic_is_told_not_to_call_tools_at_once(
    fars: dict[str, FarServer], house: Api, db: Database, make_tenant: MakeTenant
) -> None:
    counter, far = Counter(house, db, await make_tenant(credits=100)), fars["anthropic"]
    await counter.sell("anthropic", far)
    tool: Any = {"type": "function", "function": {"name": "clock"}}
    url = "https://example.com/hare.png"
    asked: Any = [
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]}
    ]

    client: AsyncOpenAI
    async with counter.client() as client:
        await client.chat.completions.create(model="acme/chat", messages=asked, tools=[tool], parallel_tool_calls=False)

    sent = far.asked[-1].body
    assert sent["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert sent["messages"][0]["content"][1] == {"type": "image", "source": {"type": "url", "url": url}}
