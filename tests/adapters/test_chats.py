"""OpenAI's Python client, unchanged, against limner in front of providers that speak another interface."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.adapters.counter import CHAT, Counter, charge_mc
from tests.emulators.far_server import FarServer
from tests.emulators.gemini_server import THOUGHT
from tests.emulators.openai_server import Says, text_of
from tests.faults.cluster import eventually
from tests.openai_clients.shop import Books

HELLO: Any = [{"role": "user", "content": "a hare"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


async def test_a_chat(client: AsyncOpenAI, far: FarServer, books: Books) -> None:
    told: Any = [{"role": "system", "content": "Be brief."}, *HELLO]
    raw = await client.chat.completions.with_raw_response.create(
        model=CHAT, messages=told, temperature=0.5, top_p=0.9, stop=["END"], max_tokens=50, user="ann", n=1
    )
    answer = raw.parse()

    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text_of("a hare"), "stop")
    assert (answer.model, answer.object) == (CHAT, "chat.completion")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (12, 7, 19)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert float(raw.headers["x-limner-credits"]) == charge_mc(12, 4, 7) / 1000
    await eventually(lambda: books.jobs() == [("succeeded", charge_mc(12, 4, 7))])
    sent = json.dumps(far.asked[-1].body)
    assert all(words in sent for words in ("Be brief.", "0.5", "0.9", "END", "50"))


async def test_a_stream_with_its_usage(client: AsyncOpenAI, books: Books) -> None:
    stream = await client.chat.completions.create(
        model=CHAT, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    words = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert words == "".join(f"word{n} " for n in range(20))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert (chunks[-1].choices, chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == ([], 12, 20)
    assert len({chunk.id for chunk in chunks}) == 1
    await eventually(lambda: books.jobs() == [("succeeded", charge_mc(12, 4, 20))])


async def test_tools_are_called_and_their_results_taken(client: AsyncOpenAI, far: FarServer) -> None:
    first = await client.chat.completions.create(model=CHAT, messages=HELLO, tools=[WEATHER, CLOCK], tool_choice="auto")
    message = first.choices[0].message
    assert (first.choices[0].finish_reason, message.content) == ("tool_calls", None)
    [call] = message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "a hare"})

    told: Any = {"role": "tool", "tool_call_id": call.id, "content": "fog"}
    messages = [*HELLO, message.model_dump(exclude_none=True), told]
    second = await client.chat.completions.create(model=CHAT, messages=messages, tools=[WEATHER])
    assert "fog" in (second.choices[0].message.content or "")


@pytest.mark.parametrize("tool", [WEATHER, CLOCK], ids=["with-arguments", "without"])
async def test_tools_are_called_in_a_stream(client: AsyncOpenAI, tool: Any) -> None:
    async with client.chat.completions.stream(model=CHAT, messages=HELLO, tools=[tool]) as stream:
        final = await stream.get_final_completion()

    [call] = final.choices[0].message.tool_calls or []
    expected = {"place": "a hare"} if tool is WEATHER else {}
    assert (final.choices[0].finish_reason, json.loads(call.function.arguments)) == ("tool_calls", expected)


@pytest.mark.parametrize("choice", ["required", "none", {"type": "function", "function": {"name": "weather"}}])
async def test_the_choice_of_tools_is_handed_on(client: AsyncOpenAI, choice: Any) -> None:
    answer = await client.chat.completions.create(model=CHAT, messages=HELLO, tools=[WEATHER], tool_choice=choice)

    assert bool(answer.choices[0].message.tool_calls) == (choice != "none")


async def test_a_picture_in_a_message_is_seen(client: AsyncOpenAI, far: FarServer, photo: str) -> None:
    parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": photo}}]
    asked: Any = [{"role": "user", "content": parts}]

    answer = await client.chat.completions.create(model=CHAT, messages=asked)

    assert answer.choices[0].message.content == text_of("what is this")
    assert photo.partition(",")[2] in json.dumps(far.asked[-1].body)


class Weather(BaseModel):
    words: str
    degrees: int


async def test_an_answer_has_the_shape_that_was_asked_for(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(model=CHAT, messages=HELLO, response_format=Weather)

    assert answer.choices[0].message.parsed == Weather(words=text_of("a hare"), degrees=7)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2},
        {"logprobs": True},
        {"logit_bias": {"50256": -100}},
        {"verbosity": "low", "stream": True},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}]},
    ],
    ids=["n", "logprobs", "logit_bias", "verbosity", "audio"],
)  # fmt: skip
async def test_what_cannot_be_translated_is_refused_and_costs_nothing(
    client: AsyncOpenAI, far: FarServer, books: Books, change: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": CHAT, "messages": HELLO, **change})

    assert (caught.value.code, far.asked) == ("unsupported_parameter", [])
    assert books.jobs() == [("failed", 0)]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "ghost", "content": "x"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "nobody", "content": "x"}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "["}}]}],
        [{"role": "system", "content": "only this"}],
        [{"content": "x"}],
    ],
)  # fmt: skip
async def test_messages_that_are_not_understood_are_the_callers_fault(
    counter: Counter, far: FarServer, books: Books, messages: list[Any]
) -> None:
    answer = await counter.ask(messages=messages)

    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error"), answer.body
    assert far.asked == []
    await eventually(lambda: books.jobs() == [("failed", 0)])


@pytest.mark.parametrize(
    ("turn", "stream"),
    [
        (Says(500, {"error": {"message": "oh"}}), True),
        (Says(200, b"<html>"), False),
        (Says(200, {}), True),
        (Says(200, {}), False),
        ("hangs up", True),
    ],
    ids=["broken", "garbage", "no-stream", "nothing", "hangs-up"],
)
async def test_a_provider_that_fails_is_told_and_costs_nothing(
    client: AsyncOpenAI, far: FarServer, books: Books, turn: Any, stream: bool
) -> None:
    far.then(turn)

    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model=CHAT, messages=HELLO, stream=stream)

    assert books.jobs() == [("failed", 0)]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_one_does_not_take_or_answer_another_does(
    counter: Counter, client: AsyncOpenAI, adapter: str, far: FarServer, fars: dict[str, FarServer], stream: bool
) -> None:
    """The same server under a second name comes after it."""
    await counter.sell(adapter, far, name="second", place=2)
    far.then(Says(500, {"error": {"message": "oh"}}))

    raw = await client.chat.completions.with_raw_response.create(model=CHAT, messages=HELLO, stream=stream)

    assert raw.headers["x-limner-provider"] == "second"
    assert len(far.asked) == 2


async def test_a_stream_that_breaks_off_is_told_and_charged_for_what_came(
    client: AsyncOpenAI, far: FarServer, books: Books
) -> None:
    far.then("breaks off")

    words: list[Any] = []

    async def listen() -> None:
        async for chunk in await client.chat.completions.create(model=CHAT, messages=HELLO, stream=True):
            words.extend(choice.delta.content for choice in chunk.choices)

    with pytest.raises(openai.APIError):
        await listen()

    assert 0 < len(words) < 20
    await eventually(lambda: [state for state, _ in books.jobs()] == ["succeeded"])
    assert 0 < (books.jobs()[0][1] or 0) < charge_mc(100, 0, 20)


async def test_who_hangs_up_closes_the_line_behind(
    counter: Counter, adapter: str, far: FarServer, books: Books
) -> None:
    await counter.sell(adapter, far, on_disconnect="abort")
    far.token_s = 0.05

    async with counter.client() as client:
        stream = await client.chat.completions.create(model=CHAT, messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()

    await asyncio.wait_for(far.gone.wait(), 5)
    await eventually(lambda: books.closed() and len(books.jobs()) == 1)
    assert far.written[far.asked[-1].headers["X-Client-Request-Id"]] < far.tokens
    if adapter == "gemini":  # it counts as it goes
        assert books.jobs()[0][1] in {charge_mc(12, 4, written + THOUGHT) for written in range(1, 20)}
