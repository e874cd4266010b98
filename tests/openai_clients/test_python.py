"""OpenAI's Python client, unchanged."""

import base64
import contextlib
import io
import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from PIL import Image
from pydantic import BaseModel

from limner.db.pools import Database
from limner.tenancy import apps
from tests.conftest import MakeTenant, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer, Says
from tests.faults.cluster import eventually
from tests.media import recordings
from tests.openai_clients.shop import (
    CHAT,
    EDITS,
    JUDGE,
    PICTURES,
    STREAM_MC,
    TRANSCRIPTS,
    VARIATIONS,
    VECTORS,
    WHOLE_MC,
    Books,
    stock,
)
from tests.running import Api

HELLO: Any = [{"role": "user", "content": "a lighthouse"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
DOWN = Says(500, {"error": {"message": "oh", "type": "server_error"}})
BUSY = Says(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, {"retry-after": "0"})


def opened(house: Api, tenant: Tenant, **changed: Any) -> AsyncOpenAI:
    """A client as its users make one; it asks once unless told otherwise."""
    settings: dict[str, Any] = {"api_key": tenant.api_key, "max_retries": 0, **changed}
    return AsyncOpenAI(base_url=f"{house.url}/v1", default_headers={"X-User-ID": tenant.user}, **settings)


@pytest_asyncio.fixture
async def client(house: Api, shop: Tenant) -> AsyncIterator[AsyncOpenAI]:
    async with opened(house, shop) as client:
        yield client


async def test_a_chat(client: AsyncOpenAI, books: Books) -> None:
    raw = await client.chat.completions.with_raw_response.create(model=CHAT, messages=HELLO, temperature=0.2, seed=7)
    answer = raw.parse()

    assert answer.choices[0].message.content == openai_server.text_of("a lighthouse")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 7)
    assert (raw.headers["x-limner-provider"], float(raw.headers["x-limner-credits"])) == ("far", WHOLE_MC / 1000)
    assert float(raw.headers["x-limner-balance"]) == 100 - WHOLE_MC / 1000
    assert answer._request_id == raw.headers["x-request-id"]
    await eventually(lambda: books.jobs() == [("succeeded", WHOLE_MC)])


async def test_a_stream_with_its_usage(client: AsyncOpenAI, books: Books) -> None:
    stream = await client.chat.completions.create(
        model=CHAT, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    words = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert words == "".join(f"word{n} " for n in range(20))
    assert chunks[-1].usage is not None
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 20)
    await eventually(lambda: books.jobs() == [("succeeded", STREAM_MC)])


async def test_tools_are_called_and_their_results_taken(client: AsyncOpenAI, far: OpenAIServer) -> None:
    first = await client.chat.completions.create(model=CHAT, messages=HELLO, tools=[WEATHER], tool_choice="auto")
    message = first.choices[0].message
    assert (first.choices[0].finish_reason, message.content, far.asked[-1].body["tools"]) == (
        "tool_calls",
        None,
        [WEATHER],
    )
    [call] = message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "a lighthouse"})

    told: Any = {"role": "tool", "tool_call_id": call.id, "content": "fog"}
    messages = [*HELLO, message.model_dump(exclude_none=True), told]
    second = await client.chat.completions.create(model=CHAT, messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == openai_server.text_of("fog")
    assert far.asked[-1].body["messages"] == messages

    async with client.chat.completions.stream(model=CHAT, messages=HELLO, tools=[WEATHER]) as stream:
        [call] = (await stream.get_final_completion()).choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"place": "a lighthouse"}


async def test_pictures_in_messages_are_handed_on(client: AsyncOpenAI, far: OpenAIServer, photo: bytes) -> None:
    url = f"data:image/png;base64,{base64.b64encode(photo).decode()}"
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ]
    asked: Any = [{"role": "user", "content": parts}]

    answer = await client.chat.completions.create(model=CHAT, messages=asked)

    assert answer.choices[0].message.content == openai_server.text_of("what is this")
    assert far.asked[-1].body["messages"] == asked


class Weather(BaseModel):
    words: str
    degrees: int


async def test_a_schema_for_the_answer_is_handed_on(client: AsyncOpenAI, far: OpenAIServer) -> None:
    answer = await client.chat.completions.parse(model=CHAT, messages=HELLO, response_format=Weather)

    assert answer.choices[0].message.parsed == Weather(words=openai_server.text_of("a lighthouse"), degrees=7)
    asked = far.asked[-1].body["response_format"]
    assert (asked["type"], asked["json_schema"]["strict"]) == ("json_schema", True)


async def test_a_completion(client: AsyncOpenAI, books: Books) -> None:
    answer = await client.completions.create(model=CHAT, prompt="a quiet", max_tokens=20)

    assert answer.choices[0].text == openai_server.text_of("a quiet")
    await eventually(lambda: [state for state, _ in books.jobs()] == ["succeeded"])


@pytest.mark.parametrize("model", ["local/embed", VECTORS])
async def test_vectors_in_base64_and_as_numbers(client: AsyncOpenAI, model: str) -> None:
    texts = ["a quiet harbour", "a silent port"]
    packed = await client.embeddings.create(model=model, input=texts)  # base64, which this client asks for by itself
    numbers = await client.embeddings.create(model=model, input=texts, encoding_format="float")

    assert [item.index for item in packed.data] == [0, 1]
    for one, other in zip(packed.data, numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    if model == "local/embed":
        assert [len(item.embedding) for item in packed.data] == [384, 384]
        assert math.hypot(*packed.data[0].embedding) == pytest.approx(1, abs=1e-5)


async def test_vectors_come_in_base64_where_that_is_asked_for(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="local/embed", input="a quiet harbour", encoding_format="base64")

    packed: Any = answer.data[0].embedding
    assert len(base64.b64decode(packed)) == 4 * 384


async def test_pictures_are_made(client: AsyncOpenAI, books: Books) -> None:
    made = await client.images.generate(model="local/canvas", prompt="a harbour at sunset", n=2, size="512x512")
    assert made.data is not None
    sizes = [Image.open(io.BytesIO(base64.b64decode(item.b64_json or ""))).size for item in made.data]
    assert sizes == [(512, 512), (512, 512)]

    linked = await client.images.generate(model=PICTURES, prompt="a hare", response_format="url", user="ann")
    assert linked.data is not None
    async with aiohttp.ClientSession() as http, http.get(linked.data[0].url or "") as got:
        assert (got.status, (await got.read())[:4]) == (200, b"\x89PNG")
    assert books.jobs() == [("succeeded", 2000), ("succeeded", 2000)]


async def test_a_picture_is_edited_by_a_mask(client: AsyncOpenAI, books: Books, photo: bytes, hole: bytes) -> None:
    files: Any = {"image": ("photo.png", photo, "image/png"), "mask": ("mask.png", hole, "image/png")}
    made = await client.images.edit(model="local/inpaint", prompt="no spot", n=1, size="auto", **files)

    assert made.data is not None
    image = Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json or ""))).convert("RGB")
    red, green, _ = image.getpixel((16, 12))  # type: ignore[misc]
    assert (image.size, red > 150, green < 90) == ((32, 24), True, True)
    assert books.jobs() == [("succeeded", 2000)]


async def test_several_pictures_are_edited_together(client: AsyncOpenAI, far: OpenAIServer, photo: bytes) -> None:
    made = await client.images.edit(model=EDITS, prompt="both", image=[("a.png", photo), ("b.png", photo)], n=2)

    assert len(made.data or []) == 2
    assert (far.asked[-1].path, far.asked[-1].body["image[]"]) == ("/v1/images/edits", [photo, photo])


@pytest.mark.filterwarnings("ignore:deprecated")
async def test_variations_of_a_picture(client: AsyncOpenAI, books: Books, photo: bytes) -> None:
    made = await client.images.create_variation(model=VARIATIONS, image=("photo.png", photo), n=2, size="256x256")

    assert len(made.data or []) == 2
    assert books.jobs() == [("succeeded", 2000)]


async def test_a_recording_is_transcribed_in_each_form(client: AsyncOpenAI, books: Books) -> None:
    sound = recordings.read("tone.mp3")
    file = ("speech.mp3", sound)

    short = await client.audio.transcriptions.create(model=TRANSCRIPTS, file=file)
    plain = await client.audio.transcriptions.create(
        model=TRANSCRIPTS, file=file, response_format="text", language="en"
    )
    long = await client.audio.transcriptions.create(model=TRANSCRIPTS, file=file, response_format="verbose_json")

    assert short.text == openai_server.heard_in(sound)
    assert plain == f"{short.text}\n"
    assert (long.language, long.duration, long.segments[0].end if long.segments else 0) == ("english", 2.9, 2.9)
    assert books.jobs() == [("succeeded", 2000)] * 3
    with pytest.raises(openai.BadRequestError) as refused:
        await client.audio.transcriptions.create(model=TRANSCRIPTS, file=("page.mp3", b"<html>"))
    assert (refused.value.code, refused.value.param) == ("unsupported_media", "file")


async def test_models_are_listed_and_looked_up(client: AsyncOpenAI) -> None:
    found = {model.id: model async for model in client.models.list()}

    assert {
        CHAT,
        VECTORS,
        PICTURES,
        EDITS,
        JUDGE,
        "local/extract",
        "local/embed",
        "local/canvas",
        "local/inpaint",
    } <= found.keys()
    assert "local/describe" not in found
    assert (found[CHAT].owned_by, found["local/extract"].owned_by) == ("organization", "platform")
    assert 0 <= time.time() - found[CHAT].created < 60
    assert await client.models.retrieve("local/extract") == found["local/extract"]
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("no/such")
    assert caught.value.code == "model_not_found"


async def test_texts_and_pictures_are_judged(client: AsyncOpenAI, far: OpenAIServer, books: Books) -> None:
    judged = await client.moderations.create(
        input=["a harbour", "an axe"]
    )  # the model that is meant where none is named
    assert [result.flagged for result in judged.results] == [False, True]
    assert judged.results[1].category_scores.violence == 1.0
    assert far.asked[-1].body == {"model": "judge", "input": ["a harbour", "an axe"]}

    parts: Any = [
        {"type": "text", "text": "an axe"},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}},
    ]
    judged = await client.moderations.create(model=JUDGE, input=parts)
    assert [result.flagged for result in judged.results] == [True]
    assert far.asked[-1].body["input"] == parts
    await eventually(lambda: books.jobs() == [("succeeded", 5), ("succeeded", 5)])


async def test_without_a_model_for_it_nothing_is_judged(house: Api, tenant: Tenant) -> None:
    async with opened(house, tenant) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.moderations.create(input="a harbour")
    assert caught.value.code == "model_not_found"


# What goes wrong


async def test_a_wrong_key(house: Api, shop: Tenant) -> None:
    async with opened(house, shop, api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model=CHAT, messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")


async def test_what_is_wrong_with_a_request(client: AsyncOpenAI, books: Books) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="no/such", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=1_000_000)
    with pytest.raises(openai.BadRequestError) as priced:
        await client.chat.completions.create(model=CHAT, messages=HELLO, service_tier="priority")

    assert (unknown.value.code, unknown.value.param, unknown.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert (bad.value.param, bad.value.type) == ("max_tokens", "invalid_request_error")
    assert (priced.value.code, priced.value.param) == ("unsupported_value", "service_tier")
    assert books.jobs() == []


async def test_too_few_credits(house: Api, db: Database, make_tenant: MakeTenant, far: OpenAIServer) -> None:
    poor = await make_tenant(credits=1)
    await stock(db, poor, far.url)
    before = len(far.asked)
    async with opened(house, poor, max_retries=2) as client:
        for _ in range(2):
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=100, n=10)
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (
        402,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert len(far.asked) == before


async def test_too_many_requests(house: Api, db: Database, shop: Tenant) -> None:
    async with db.tenant_tx(shop.org_id, "limner_operator") as tx:
        await apps.set_limits(tx, shop.app, {"user_jobs_per_min": 1}, actor="test")
    async with opened(house, shop) as client:
        await client.chat.completions.create(model=CHAT, messages=HELLO)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=CHAT, messages=HELLO)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


async def test_a_body_that_is_too_large(client: AsyncOpenAI, books: Books) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "x" * (64 * 1024 * 1024)}]
        )
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
    assert books.jobs() == []


@pytest.mark.parametrize("trouble", [DOWN, BUSY, "hangs up"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_clients_own_retries_are_charged_once(
    house: Api, shop: Tenant, far: OpenAIServer, books: Books, trouble: Any, stream: bool
) -> None:
    far.then(trouble)
    before = len(far.asked)
    async with opened(house, shop, max_retries=2) as client:
        if stream:
            asked = await client.chat.completions.create(model=CHAT, messages=HELLO, stream=True)
            async for _ in asked:
                pass
        else:
            await client.chat.completions.create(model=CHAT, messages=HELLO)

    charge = STREAM_MC if stream else WHOLE_MC
    assert len(far.asked) - before == 2
    await eventually(lambda: books.jobs() == [("failed", 0), ("succeeded", charge)])
    assert books.wallet() == (100_000 - charge, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_stops_waiting_leaves_no_hold_behind(
    house: Api, shop: Tenant, far: OpenAIServer, books: Books, stream: bool
) -> None:
    far.then("is slow")
    async with opened(house, shop, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model=CHAT, messages=HELLO, stream=stream)

    assert books.wallet()[1] > 0
    await eventually(books.closed)
    [(state, charge)] = books.jobs()
    assert (state, charge) == ("succeeded", STREAM_MC if stream else WHOLE_MC)  # read to its end: `drain`


async def test_asking_again_by_the_same_key_is_no_second_call(
    house: Api, shop: Tenant, far: OpenAIServer, books: Books
) -> None:
    far.then("is slow")
    before = len(far.asked)
    async with opened(house, shop, timeout=0.3, max_retries=1) as client:
        with contextlib.suppress(openai.APIError):  # the first call is under way while the second one asks
            await client.chat.completions.create(model=CHAT, messages=HELLO, extra_headers={"Idempotency-Key": "k1"})

    await eventually(books.closed)
    assert (books.jobs(), len(far.asked) - before) == ([("succeeded", WHOLE_MC)], 1)
