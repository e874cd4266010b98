"""What messages ask, and of which text, in the ways people write it."""

from typing import Any

import pytest

from limner.hub.providers.local.reading import tasks
from limner.hub.providers.local.reading.given import asked
from limner.hub.providers.local.reading.shapes import MAX_CHARS, Amount, TextRejected

TEXT = (
    "The bridge opened in 1932. It spans the river Dee near Alder. Anna Holt designed it after a long study of floods. "
    "It cost three million dollars."
)


def user(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize(("message", "task"), [
    (f"Summarise this text: {TEXT}", "summarise"), (f"Summarize:\n\n{TEXT}", "summarise"), (f"TL;DR\n{TEXT}", "summarise"),
    (f"{TEXT}\n\nSum this up in one sentence.", "summarise"), (f"{TEXT}\n\nIn two sentences, please.", "summarise"),
    (f"Please summarise the following article. {TEXT}", "summarise"), (f"Summarise:\n```\n{TEXT}\n```", "summarise"),
    (f"Can you shorten this for me?\n\n{TEXT}", "summarise"), (f'Summarise "{TEXT}" in two sentences', "summarise"),
    (f"Summarise: “{TEXT}”", "summarise"), (f"What is this text about?\n{TEXT}", "summarise"),
    (f"Write a summary of this article in 20 words:\n{TEXT}", "summarise"), (f"Give me a summary of this story:\n{TEXT}", "summarise"),
    (f'Give me the 2 key points of """{TEXT}"""', "key_points"), (f"What are the main takeaways?\n\n{TEXT}", "key_points"),
    (f"List the main points of '''{TEXT}'''", "key_points"), (f"Summarise in three bullet points:\n{TEXT}", "key_points"),
    (f"Fix the typos: {TEXT}", "fix_typos"), (f"Proofread this:\n{TEXT}", "fix_typos"),
    (f"Correct the spelling in '''{TEXT}'''", "fix_typos"),
    (f"Please check this for spelling mistakes:\n\n{TEXT}", "fix_typos"), (f"From the text: who designed it?\n{TEXT}", "answer"),
    (f"Who designed the bridge? {TEXT}", "answer"), (f"{TEXT} Who designed the bridge?", "answer"),
    (f"Text: {TEXT}\nQuestion: How much did it cost?", "answer"), (f"Question: How much did it cost?\nContext: {TEXT}", "answer"),
    (f"Read the following text and answer the question.\n\n{TEXT}\n\nWhen did the bridge open?", "answer"),
    (f"Explain why the bridge was built.\n{TEXT}", "answer"), (f"Did she write a poem?\n{TEXT}", "answer"),
])  # fmt: skip
def test_a_message_that_brings_its_text(message: str, task: str) -> None:
    request = asked(user(message))

    assert (request.task, request.text) == (task, TEXT)


@pytest.mark.parametrize("message", [
    "Write a poem about the sea", f"Translate to French: {TEXT}", "hello", "Thanks.", f"Write a short story about: {TEXT}", TEXT,
    f"Rewrite this for children:\n{TEXT}", "Can you write me an email to my boss?", "", "?!", "Draw a horse",
])  # fmt: skip
def test_what_is_not_done_here_is_no_task(message: str) -> None:
    assert asked(user(message)).task == "none"


def test_the_text_of_an_earlier_message_is_meant_when_the_last_one_has_none() -> None:
    assert asked(user(TEXT, "When did the bridge open?")).text == TEXT
    assert asked(user(f"Summarise this: {TEXT}", "Now the key points")).text == TEXT
    assert asked([{"role": "system", "content": TEXT}, *user("tl;dr")]).text == TEXT


def test_what_a_system_says_to_the_model_is_no_text_and_what_it_brings_is() -> None:
    addressed = {
        "role": "system",
        "content": "You are a helpful assistant that can do many wonderful things for people.",
    }
    brings = {"role": "system", "content": f"You are a helpful assistant. Answer from the context.\n\nContext: {TEXT}"}

    assert asked([addressed, *user("Summarise it")]).text == ""
    assert asked([brings, *user("Where is the bridge?")]).text == TEXT


def test_a_system_may_say_what_is_done_with_all_that_a_user_sends() -> None:
    request = asked([{"role": "system", "content": "You summarise texts."}, *user(TEXT)])

    assert (request.task, request.text) == ("summarise", TEXT)


def test_what_an_assistant_said_is_no_text() -> None:
    messages = [*user("hi"), {"role": "assistant", "content": TEXT}, *user("Summarise this")]

    assert asked(messages).text == ""


def test_parts_of_type_text_are_read_and_others_left_out() -> None:
    parts = [
        {"type": "text", "text": "Summarise:"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": TEXT},
    ]

    assert asked([{"role": "user", "content": parts}]).text == TEXT
    assert asked([{"role": "user", "content": None}]).task == "none"
    assert asked([]).task == "none"


@pytest.mark.parametrize("message", [{"content": "x"}, {"role": 1}, {"role": "user", "content": 5}])
def test_what_is_no_message_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(TextRejected) as caught:
        asked([message])
    assert caught.value.code == "bad_message"


def test_too_long_a_text_is_refused_in_words() -> None:
    assert len(asked(user("Summarise:\n" + "x" * MAX_CHARS)).text) == MAX_CHARS
    for messages in (user("Summarise:\n" + "x" * (MAX_CHARS + 1)), user("x" * 2 * MAX_CHARS, "Summarise")):
        with pytest.raises(TextRejected, match=r"at most [24]00,000 are read") as caught:
            asked(messages)
        assert caught.value.code == "text_too_long"


@pytest.mark.parametrize(("instruction", "amount"), [
    ("Summarise in two sentences", Amount(2, "sentences")), ("in 3 sentences", Amount(3, "sentences")),
    ("Summarise this in 50 words.", Amount(50, "words")), ("a 50-word summary", Amount(50, "words")),
    ("in at most 280 characters", Amount(280, "characters")), ("Summarise the 300 words below in one sentence", Amount(1, "sentences")),
    ("Give me the top 5 takeaways", Amount(5, "sentences")), ("three short bullet points", Amount(3, "sentences")),
    ("Summarise in a single sentence", Amount(1, "sentences")), ("in a sentence", Amount(1, "sentences")),
    ("in 0 words", Amount(1, "words")), ("Summarise", None), ("What happened in 1932?", None), ("in 2-3 sentences", Amount(3, "sentences")),
])  # fmt: skip
def test_how_much_is_asked_for(instruction: str, amount: Amount | None) -> None:
    assert tasks.amount(instruction) == amount
