"""Everything that can go wrong between the OpenAI-compatible adapter and a server, and what a run makes of it."""

import asyncio
import base64
import socket
from typing import Any

import pytest

from limner.egress.fixed import FixedDoor
from limner.hub.providers import verdicts
from limner.hub.providers.openai_compatible import adapter as adapter_module
from limner.hub.providers.openai_compatible.adapter import OpenAICompatibleAdapter
from tests.emulators.openai_server import Misfortune, Says
from tests.hub.doubles import png
from tests.hub.providers.openai_calls import KEY, Desk, open_desk, picture

__all__ = ["open_desk"]

B64 = base64.b64encode(png(8)).decode()


def _says(code: Any = None, message: str = "No.", param: str | None = None, kind: str = "x") -> dict[str, Any]:
    return {"error": {"message": f"{message} {KEY}", "type": kind, "param": param, "code": code}}


# What a server says


@pytest.mark.parametrize(
    ("status", "body", "code", "kind"),
    [
        (401, _says("invalid_api_key"), "provider_auth", "auth"),
        (403, _says(), "provider_auth", "auth"),
        (403, _says("content_policy_violation"), "content_refused", "content"),
        (402, {"error": {"code": 402, "message": "Insufficient credits"}}, "provider_quota_exhausted", "auth"),
        (429, _says("rate_limit_exceeded"), "provider_rate_limited", "rate"),
        (429, _says("insufficient_quota"), "provider_quota_exhausted", "auth"),
        (429, _says(None, kind="insufficient_quota"), "provider_quota_exhausted", "auth"),
        (429, b"<html>slow down", "provider_rate_limited", "rate"),
        (400, _says(), "provider_refused", "bad_request"),
        (400, b"", "provider_refused", "bad_request"),
        (400, b"[]", "provider_refused", "bad_request"),
        (400, {"error": None}, "provider_refused", "bad_request"),
        (422, {"detail": [{"loc": ["body"], "msg": "no"}]}, "provider_refused", "bad_request"),
        (400, _says("content_policy_violation"), "content_refused", "content"),
        (400, _says("content_filter"), "content_refused", "content"),
        (400, _says("moderation_blocked", kind="image_generation_user_error"), "content_refused", "content"),
        (400, _says("context_length_exceeded"), "context_too_long", "fatal"),
        (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400},
         "context_too_long", "fatal"),
        (400, _says("unsupported_parameter", param="max_tokens"), "unsupported_input", "fatal"),
        (413, b"too large", "provider_request_too_large", "fatal"),
        (404, _says("model_not_found"), "provider_model_unknown", "fatal"),
        (404, {"error": 'model "llama" not found, try pulling it first'}, "provider_model_unknown", "fatal"),
        (404, {"object": "error", "message": "The model `x` does not exist.", "code": 404}, "provider_model_unknown", "fatal"),
        (400, _says("invalid_value", param="model"), "provider_model_unknown", "fatal"),
        (404, {"detail": "Not Found"}, "provider_misconfigured", "fatal"),
        (405, b"", "provider_misconfigured", "fatal"),
        (302, b"", "provider_misconfigured", "fatal"),
        (204, b"", "provider_misconfigured", "fatal"),
        (408, b"", "provider_unavailable", "retryable"),
        (409, _says(), "provider_unavailable", "retryable"),
        (500, _says("server_error"), "provider_unavailable", "retryable"),
        (503, b"<html>", "provider_unavailable", "retryable"),
        (529, b"", "provider_unavailable", "retryable"),
        (502, _says("content_filter"), "content_refused", "content"),
    ],
)  # fmt: skip
async def test_an_error_is_of_the_class_that_its_cause_asks_for(
    desk: Desk, status: int, body: Any, code: str, kind: str
) -> None:
    desk.server.then(Says(status, body, {"Location": "http://127.0.0.1:1/"} if status == 302 else {}))

    error = await desk.refused(prompt="a hare")

    assert (error.code, error.kind, error.outcome_unknown) == (code, kind, False)
    assert KEY not in error.message
    assert len(desk.server.asked) == 1, "nothing is followed and nothing tried again here"


@pytest.mark.parametrize("status", [502, 504, 520, 524])
async def test_a_gateway_does_not_know_what_stands_behind_it_has_done(desk: Desk, status: int) -> None:
    desk.server.then(Says(status, b"<html>"))

    error = await desk.refused(prompt="a hare")

    assert (error.code, error.kind, error.outcome_unknown) == ("provider_unavailable", "retryable", True)


@pytest.mark.parametrize(
    ("body", "code", "kind"),
    [
        ({"error": {"code": 429, "message": "slow"}}, "provider_rate_limited", "rate"),
        ({"error": {"code": "content_filter", "message": "no"}}, "content_refused", "content"),
        ({"error": "it broke"}, "provider_unavailable", "retryable"),
    ],
)
async def test_an_error_may_come_with_status_200(desk: Desk, body: Any, code: str, kind: str) -> None:
    desk.server.then(Says(200, body))

    error = await desk.refused(prompt="a hare")

    assert (error.code, error.kind) == (code, kind)


async def test_an_error_names_a_field_that_was_sent_and_no_other_word(desk: Desk) -> None:
    desk.server.then(Says(400, _says(param="temperature")), Says(400, _says(param=KEY)), Says(400, _says(param="seed")))

    said = [(await desk.refused(prompt="a hare", temperature=9)).message for _ in range(3)]

    assert said == [
        "The provider refused the request because of temperature.",
        "The provider refused the request.",
        "The provider refused the request.",
    ]


# When to come back


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("7", 7.0), ("0", 0.0), ("2.5", 2.5), ("-3", 0.0), ("soon", None), ("", None), ("nan", None), ("inf", None),
     ("Wed, 21 Oct 2099 07:28:00 GMT", 30.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 99 Oct 2015", None)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date_by_the_answers_own_clock(given: str, seconds: float | None) -> None:
    assert verdicts.retry_after_s({"retry-after": given, "date": "Wed, 21 Oct 2099 07:27:30 GMT"}) == seconds


def test_retry_after_as_a_date_without_the_answers_own_date_says_nothing() -> None:
    """This machine's clock decides nothing."""
    assert verdicts.retry_after_s({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) is None


async def test_a_server_that_is_busy_says_for_how_long(desk: Desk) -> None:
    desk.server.then(Says(429, _says(), {"Retry-After": "11"}))

    assert (await desk.refused(prompt="a hare")).retry_after_s == 11


# Answers that are none


def _choice(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"<html>ok</html>", b"[]", b'"text"', b"null", b"\xff\xfe", {}, {"choices": None}, {"choices": {}},
     {"choices": ["text"]}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": [{"message": "text"}]},
     _choice(content=5), _choice(content=["text"]), _choice(content={"text": "x"})],
)  # fmt: skip
async def test_an_answer_that_is_not_understood_is_a_failed_attempt(desk: Desk, body: Any) -> None:
    desk.server.then(Says(200, body))

    error = await desk.refused(prompt="a hare")

    assert (error.code, error.kind, error.outcome_unknown) == ("provider_answer_invalid", "retryable", False)


@pytest.mark.parametrize(
    "body", [{"choices": []}, _choice(content=""), _choice(content=" \n"), _choice(content=None), _choice()]
)
async def test_an_answer_without_words_is_none(desk: Desk, body: Any) -> None:
    desk.server.then(Says(200, body))

    assert (await desk.refused(prompt="a hare")).code == "provider_answer_empty"


@pytest.mark.parametrize(
    ("choice", "code", "kind"),
    [
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, "content_refused", "content"),
        ({"message": {"content": "half a sen"}, "finish_reason": "content_filter"}, "content_refused", "content"),
        (
            {"message": {"content": None, "refusal": "I would rather not."}, "finish_reason": "stop"},
            "content_refused",
            "content",
        ),
        ({"message": {"content": ""}, "finish_reason": "length"}, "answer_cut_off", "fatal"),
    ],
)
async def test_why_there_are_no_words_decides_what_follows(desk: Desk, choice: Any, code: str, kind: str) -> None:
    desk.server.then(Says(200, {"choices": [choice]}))

    error = await desk.refused(prompt="a hare")

    assert (error.code, error.kind) == (code, kind)


async def test_an_answer_that_its_filter_kept_back_says_what_it_consumed(desk: Desk) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 7}
    desk.server.then(
        Says(200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}], "usage": usage})
    )

    error = await desk.refused(prompt="a hare")

    assert [(use.kind, use.quantity, use.unit) for use in error.usage] == [
        ("input_tokens", 12, "token"), ("output_tokens", 7, "token"),
    ]  # fmt: skip


async def test_of_several_texts_those_that_are_there_are_kept(desk: Desk) -> None:
    choices = [
        {"message": {"content": "one"}, "finish_reason": "length"},
        {"message": {"content": ""}, "finish_reason": "stop"},
        {"message": {"content": "no"}, "finish_reason": "content_filter"},
        {"message": {"content": "two"}, "finish_reason": "a word of theirs"},
    ]
    desk.server.then(Says(200, {"choices": choices}))

    answer = await desk.ask(prompt="a hare", num_outputs=4)

    assert [(o.index, o.text, o.facts) for o in answer.outputs] == [
        (0, "one", {"finish_reason": "length"}),
        (1, "two", {}),
    ]


@pytest.mark.parametrize(
    ("body", "code", "kind"),
    [
        ({"data": None}, "provider_answer_invalid", "retryable"),
        ({"data": ["x"]}, "provider_answer_invalid", "retryable"),
        ({"data": [{}]}, "provider_answer_invalid", "retryable"),
        ({"data": [{"b64_json": "not base64!"}]}, "provider_answer_invalid", "retryable"),
        ({"data": [{"b64_json": B64[:-5]}]}, "provider_answer_invalid", "retryable"),
        ({"data": [{"b64_json": "ümlaut=="}]}, "provider_answer_invalid", "retryable"),
        ({"data": [{"b64_json": 5}]}, "provider_answer_invalid", "retryable"),
        ({"data": []}, "provider_answer_empty", "retryable"),
        ({"data": [{"url": "https://elsewhere.example/a.png"}]}, "provider_answer_by_address", "fatal"),
    ],
)
async def test_pictures_that_are_none(desk: Desk, body: Any, code: str, kind: str) -> None:
    desk.server.then(Says(200, body))

    error = await desk.refused("image.generate", prompt="a hare")

    assert (error.code, error.kind, error.outcome_unknown) == (code, kind, False)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, "provider_answer_invalid"),
        ([], "provider_answer_empty"),
        ([{"embedding": []}], "provider_answer_invalid"),
        ([{"embedding": "AACAPw=="}], "provider_answer_invalid"),
        ([{"embedding": [0.5, None]}], "provider_answer_invalid"),
        ([{"embedding": [True, False]}], "provider_answer_invalid"),
        ([{"embedding": [0, 0.0]}], "provider_answer_invalid"),
        ([{"embedding": [1e300]}], "provider_answer_invalid"),
        ([{"embedding": [0.1] * 16_385}], "provider_answer_invalid"),
    ],
)
async def test_vectors_that_are_none(desk: Desk, data: Any, code: str) -> None:
    desk.server.then(Says(200, {"data": data}))

    error = await desk.refused("text.embed", text="a hare")

    assert (error.code, error.kind, error.outcome_unknown) == (code, "retryable", False)


async def test_of_several_pictures_those_that_are_there_are_kept(desk: Desk) -> None:
    desk.server.then(Says(200, {"data": [{"b64_json": "%"}, {"b64_json": B64}]}))

    answer = await desk.ask("image.generate", prompt="a hare", num_outputs=2)

    assert [(output.index, output.data) for output in answer.outputs] == [(0, png(8))]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, [None, None]),
        ("many", [None, None]),
        ({"prompt_tokens": -1, "completion_tokens": 7}, [-1, 7]),
        ({"prompt_tokens": KEY, "completion_tokens": None}, [None, None]),
        ({"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 6}}, [5, 0, None]),
        ({"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": None}, [5, 0]),
        ({"prompt_tokens": 5, "completion_tokens": 1e30}, [5, 1e30]),
    ],
)
async def test_usage_is_handed_on_as_stated_and_never_as_text(desk: Desk, usage: Any, counts: list[Any]) -> None:
    desk.server.then(Says(200, _choice(content="words") | {"usage": usage}))

    answer = await desk.ask(prompt="a hare")

    assert [use.quantity for use in answer.usage] == counts


# The line


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        ("stalls", "provider_timeout"),
        ("stalls after its headers", "provider_timeout"),
        ("hangs up", "provider_connection_lost"),
        ("hangs up afterwards", "provider_connection_lost"),
        ("breaks off", "provider_connection_lost"),
    ],
)
@pytest.mark.parametrize("kind", ["text.generate", "image.generate"])
async def test_a_line_that_fails_after_the_request_leaves_the_outcome_open(
    desk: Desk, kind: str, turn: Misfortune, code: str
) -> None:
    desk.server.then(turn)

    error = await desk.refused(kind, prompt="a hare", timeout_s=0.6)

    assert (error.code, error.kind, error.outcome_unknown) == (code, "retryable", True)
    assert (await desk.ask(kind, prompt="a hare")).outputs, "the next request finds a line"


async def test_a_server_that_is_not_there_has_done_nothing(desk: Desk) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    door = FixedDoor((), (origin,), {})
    desk.adapter = OpenAICompatibleAdapter(door)

    error = await desk.refused(prompt="a hare", base_url=f"{origin}/v1")

    assert (error.code, error.kind, error.outcome_unknown) == ("provider_unreachable", "retryable", False)
    await door.aclose()


async def test_an_address_that_is_not_allowed_is_never_called(desk: Desk) -> None:
    door = FixedDoor(("api.openai.com",), (), {desk.server.origin: KEY})
    desk.adapter = OpenAICompatibleAdapter(door)

    error = await desk.refused(prompt="a hare")

    assert (error.code, error.kind, error.outcome_unknown) == ("provider_not_allowed", "fatal", False)
    assert desk.server.asked == []
    await door.aclose()


async def test_an_answer_beyond_every_bound_is_cut_off(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_module, "MAX_TEXT_BYTES", 10_000)
    monkeypatch.setattr(adapter_module, "MAX_PICTURE_BYTES", 10_000)
    desk.server.always(Says(200, _choice(content="a" * 20_000)))

    text, image = await desk.refused(prompt="a hare"), await desk.refused("image.generate", prompt="a hare")

    assert text.code == image.code == "provider_answer_too_large"


async def test_a_call_that_is_cancelled_lets_go_of_the_line(desk: Desk) -> None:
    desk.server.then("stalls")
    asking = asyncio.create_task(desk.ask(prompt="a hare"))
    while not desk.server.asked:
        await asyncio.sleep(0.01)

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await desk.ask(prompt="a hare")).outputs


async def test_an_edit_is_refused_like_any_other(desk: Desk) -> None:
    desk.server.then(Says(400, _says("moderation_blocked")))

    assert (await desk.refused("image.edit", prompt="a hare", images=[picture()])).code == "content_refused"
