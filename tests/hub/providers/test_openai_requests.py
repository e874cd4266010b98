"""What the OpenAI-compatible adapter sends, and what it makes of good answers. Errors: test_openai_errors.py."""

import base64
from typing import Any

import pytest

from limner.hub.providers.base import CallClass, ConfigInvalid, Output, Usage
from limner.hub.providers.openai_compatible import config as openai_config
from limner.hub.providers.texts import DESCRIBE
from tests.emulators.openai_server import text_of, vector_of
from tests.hub.doubles import png
from tests.hub.providers.openai_calls import JOB, KEY, Desk, open_desk, picture

__all__ = ["open_desk"]


async def test_a_text_is_asked_for_and_comes_with_what_it_consumed(desk: Desk) -> None:
    answer = await desk.ask(prompt="a hare", system="Be brief.", temperature=0.3, max_tokens=200)

    assert answer.outputs == (Output(0, "text", text=text_of("a hare"), facts={"finish_reason": "stop"}),)
    assert answer.usage == (
        Usage("input_tokens", 12, "token"), Usage("output_tokens", 7, "token"), Usage("cached_input_tokens", 4, "token"),
    )  # fmt: skip
    assert answer.task_id == "req_1", "what the provider's support knows it by"
    [asked] = desk.server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "tiny", "temperature": 0.3, "max_tokens": 200,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a hare"}],
    }  # fmt: skip
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.headers["X-Client-Request-Id"] == str(JOB)
    assert "OpenAI-Organization" not in asked.headers


async def test_several_texts_keep_their_order(desk: Desk) -> None:
    answer = await desk.ask(prompt="a hare", num_outputs=3)

    assert [output.index for output in answer.outputs] == [0, 1, 2]
    assert desk.server.asked[0].body["n"] == 3


async def test_the_configuration_decides_what_servers_differ_in(desk: Desk) -> None:
    config = {"organization": "org-7", "max_tokens_field": "max_completion_tokens", "response_format": None}

    await desk.ask(prompt="a hare", max_tokens=5, config=config)
    await desk.ask("image.generate", prompt="a hare", config=config)
    await desk.ask("image.generate", prompt="a hare", base_url=desk.server.url + "/")

    text, picture, again = desk.server.asked
    assert text.headers["OpenAI-Organization"] == "org-7"
    assert (text.body["max_completion_tokens"], "max_tokens" in text.body) == (5, False)
    assert "response_format" not in picture.body
    assert again.path == "/v1/images/generations"


async def test_what_the_request_leaves_open_is_not_sent(desk: Desk) -> None:
    await desk.ask(prompt="a hare", temperature=None, seed=None, system="")

    assert desk.server.asked[0].body.keys() == {"model", "messages"}


async def test_a_vector_is_asked_for_and_keeps_its_numbers(desk: Desk) -> None:
    answer = await desk.ask("text.embed", text="a hare", dimensions=8)

    [output] = answer.outputs
    assert (output.type, output.vector) == ("vector", vector_of("a hare"))
    assert answer.usage == (Usage("input_tokens", 3, "token"),)
    [asked] = desk.server.asked
    assert (asked.path, asked.body) == (
        "/v1/embeddings", {"model": "tiny", "input": "a hare", "encoding_format": "float", "dimensions": 8},
    )  # fmt: skip


async def test_pictures_are_asked_for_in_base64(desk: Desk) -> None:
    answer = await desk.ask("image.generate", prompt="a hare", num_outputs=2, size="1024x1024", quality="low")

    assert answer.outputs == (
        Output(0, "image", data=png(8, grey=20)),
        Output(1, "image", data=png(8, grey=21)),
    )
    assert answer.usage == (), "such servers state none, and nothing is made up"
    assert desk.server.asked[0].body == {
        "model": "painter", "prompt": "a hare", "n": 2, "size": "1024x1024", "quality": "low", "response_format": "b64_json",
    }  # fmt: skip


async def test_pictures_may_state_tokens(desk: Desk) -> None:
    desk.server.changes = lambda answer: (
        answer | {"usage": {"input_tokens": 9, "output_tokens": 4000, "total_tokens": 4009}}
    )

    answer = await desk.ask("image.generate", prompt="a hare")

    assert answer.usage == (Usage("input_tokens", 9, "token"), Usage("output_tokens", 4000, "token"))


async def test_an_edit_goes_out_as_a_form_with_picture_and_mask(desk: Desk) -> None:
    original, mask = picture(10), picture(11)

    answer = await desk.ask("image.edit", prompt='a "hare"\r\nin the grass', images=[original], mask=mask)

    assert answer.outputs[0].data == png(8, grey=20)
    [asked] = desk.server.asked
    assert asked.path == "/v1/images/edits"
    assert asked.body == {
        "model": "painter", "prompt": 'a "hare"\r\nin the grass', "n": "1", "response_format": "b64_json",
        "image": original.data, "mask": mask.data,
    }  # fmt: skip


async def test_an_edit_of_several_pictures_names_them_as_a_list(desk: Desk) -> None:
    await desk.ask("image.edit", prompt="together", images=[picture(1), picture(2)])

    assert desk.server.asked[0].body["image[]"] == [picture(1).data, picture(2).data]


@pytest.mark.parametrize(
    ("kind", "prompt", "sent"), [("image.describe", None, DESCRIBE), ("text.generate", "What is it?", "What is it?")]
)
async def test_a_model_that_sees_is_shown_pictures(desk: Desk, kind: str, prompt: str | None, sent: str) -> None:
    answer = await desk.ask(kind, model="tiny", images=[picture()], **({} if prompt is None else {"prompt": prompt}))

    assert answer.outputs[0].text == text_of(sent)
    shown = "data:image/png;base64," + base64.b64encode(picture().data).decode()
    assert desk.server.asked[0].body["messages"][0]["content"] == [
        {"type": "text", "text": sent},
        {"type": "image_url", "image_url": {"url": shown}},
    ]


@pytest.mark.parametrize(
    ("kind", "given", "code", "error_kind"),
    [
        ("text.generate", {"prompt": "x", "aspect_ratio": "1:1"}, "unsupported_input", "fatal"),
        ("image.generate", {"prompt": "x", "size": 768}, "unsupported_input", "fatal"),
        ("image.generate", {"prompt": "x", "temperature": 1}, "unsupported_input", "fatal"),
        ("image.generate", {"prompt": "x", "images": [picture()]}, "unsupported_input", "fatal"),
        ("text.generate", {"prompt": "x", "mask": picture()}, "unsupported_input", "fatal"),
        ("image.upscale", {"prompt": "x"}, "unsupported_kind", "fatal"),
        ("text.generate", {"prompt": "  "}, "prompt_required", "bad_request"),
        ("text.embed", {"text": " "}, "text_required", "bad_request"),
        ("text.embed", {"text": "x", "prompt": "y", "temperature": 1}, "unsupported_input", "fatal"),
        ("text.embed", {"text": "x", "images": [picture()]}, "unsupported_input", "fatal"),
        ("image.generate", {}, "prompt_required", "bad_request"),
        ("image.edit", {"prompt": "x"}, "image_required", "bad_request"),
        ("image.describe", {}, "image_required", "bad_request"),
    ],
)
async def test_what_cannot_be_asked_is_not_asked(
    desk: Desk, kind: str, given: dict[str, Any], code: str, error_kind: str
) -> None:
    """A field that a customer set and paid for is never dropped on the way."""
    error = await desk.refused(kind, **given)

    assert (error.code, error.kind, error.outcome_unknown) == (code, error_kind, False)
    assert desk.server.asked == []


# Configuration


@pytest.mark.parametrize(
    "base_url",
    ["https://api.openai.com/v1", "http://127.0.0.1:11434/v1/", "http://[::1]:8000", "https://gateway.example/a/b"],
)
def test_addresses_that_can_work(base_url: str) -> None:
    assert openai_config.read(base_url, {}).base_url == base_url.rstrip("/")


@pytest.mark.parametrize(
    "base_url",
    [None, "", "api.openai.com/v1", "ftp://host/v1", "https://", "https:///v1", "https://user:pw@host/v1", "https://host/v1?key=x",
     "https://host/v1#x", "https://host/v1?", "https://ho st/v1", "https://host\\@evil/v1", "https://host:port/v1", "https://hóst/v1",
     "https://host/v1\n", "https://host/" + "a" * 2048, "https://[::1/v1"],
)  # fmt: skip
def test_addresses_that_cannot(base_url: str | None) -> None:
    with pytest.raises(ConfigInvalid, match=r"^base_url must be an address such as"):
        openai_config.read(base_url, {})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"base_url": "https://host"}, "stands beside config"),
        ({"api_key": "sk-1"}, "unknown api_key"),
        ({"organization": "a b"}, "organization"),
        ({"organization": "x\r\nAuthorization: y"}, "organization"),
        ({"organization": 5}, "organization"),
        ({"max_tokens_field": "tokens"}, "max_tokens_field"),
        ({"response_format": "url"}, "response_format"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"timeout_s": "30"}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"timeout_s": None}, "timeout_s"),
        ({"timeout_s": 3601}, "timeout_s"),
    ],
)
async def test_a_configuration_that_cannot_work_is_told_by_field_and_never_by_value(
    desk: Desk, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigInvalid, match=words) as caught:
        openai_config.read("https://host/v1", config)
    error = await desk.refused(prompt="x", config=config)

    assert (error.code, error.kind) == ("provider_misconfigured", "fatal")
    assert words in error.message
    assert "sk-1" not in str(caught.value)
    assert desk.server.asked == []


async def test_a_row_without_an_address_is_a_misconfigured_provider(desk: Desk) -> None:
    error = await desk.refused(prompt="x", base_url=None)

    assert (error.code, error.kind) == ("provider_misconfigured", "fatal")


def test_mj9_the_adapter_is_of_the_class_that_promises_nothing(desk: Desk) -> None:
    assert desk.adapter.call_class is CallClass.C
