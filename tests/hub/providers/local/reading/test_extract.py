"""The reader: what it quotes stands in the text, what it is told is honoured, and what it cannot do it says."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.hub.providers.local.reading import answers, ranks
from limner.hub.providers.local.reading.extract import CANNOT, NO_TEXT, read
from limner.hub.providers.local.reading.misspellings import MEANT
from limner.hub.providers.local.reading.sentences import split
from limner.hub.providers.local.reading.shapes import MAX_CHARS, READ, Reading, TextRejected
from limner.hub.providers.local.reading.terms import words
from limner.kit.cpu import CpuPool
from limner.settings import Settings
from tests.hub.providers.local.reading.cases import CORPUS, HELD_OUT, LEARNT, text

TRUE = [text(f"{number:02}") for number in range(1, 21)]
SOME = st.lists(
    st.sampled_from([s.text for one in TRUE[:4] for s in split(one)]) | st.text(max_size=30), min_size=1, max_size=30
)


def do(instruction: str, given_text: str) -> Reading:
    return read([{"role": "user", "content": given_text}, {"role": "user", "content": instruction}])


def hold_together(given_text: str, quoted: list[str]) -> None:
    """Each stands in the text, behind the one before it, but for white space."""
    flat = " ".join(given_text.split())
    behind = 0
    for sentence in quoted:
        at = flat.find(sentence, behind)
        assert at >= behind, sentence
        behind = at + len(sentence)


@pytest.mark.parametrize("whole", TRUE)
def test_a_summary_is_a_quarter_of_the_sentences_word_for_word_and_in_order(whole: str) -> None:
    reading = do("Summarise this.", whole)

    quoted = [sentence.text for sentence in split(reading.text)]
    assert reading.task == "summarise"
    assert reading.sentences == min(5, round(len(split(whole)) / 4))
    assert len(reading.text) < len(whole) / 2
    hold_together(whole, quoted)


@settings(max_examples=80, deadline=None)
@given(SOME, st.integers(1, 8))
def test_whatever_the_text_a_list_quotes_it_in_order(parts: list[str], count: int) -> None:
    whole = f"Summarise in {count} bullet points:\n\n" + "\n\n".join(parts)
    reading = read([{"role": "user", "content": whole}])

    if reading.task == "key_points":
        lines = reading.text.split("\n")
        assert len(lines) == reading.sentences <= count
        assert all(line.startswith("- ") for line in lines)
        hold_together(whole, [line[2:] for line in lines])


def test_a_number_of_sentences_words_or_characters_is_kept() -> None:
    whole = TRUE[7]

    assert [do(f"Summarise in {n} sentences", whole).sentences for n in (1, 2, 3, 7)] == [1, 2, 3, 7]
    for count in (5, 20, 50, 120):
        assert len(list(words(do(f"Summarise in {count} words", whole).text))) <= count
        assert len(do(f"Summarise in {count} characters", whole).text) <= count
    assert len(list(words(do("Summarise in 120 words", whole).text))) > 90
    assert do("Summarise in 900 sentences", "One thing is true. Another one is false too.").sentences == 2


def test_what_does_not_fit_is_cut_and_says_so() -> None:
    reading = do("Summarise in 4 words", "The long meadow behind the house was full of the bluest flowers.")

    assert reading.text == "The long meadow behind …"


def test_a_summary_leaves_out_what_is_beside_the_point() -> None:
    whole = (
        "The city council plans a new bridge over the river. The bridge would join the old town with the harbour. "
        "Critics say that the bridge costs the city too much. My aunt likes yellow tulips. The council will vote on the bridge in May."
    )

    reading = do("Summarise in three sentences", whole)

    assert "bridge" in reading.text
    assert "tulips" not in reading.text


def test_points_do_not_say_a_thing_twice() -> None:
    whole = (
        "The new school opens in May with forty teachers. The school opens in May, with forty new teachers. Rain delayed the roof. "
        "Parents paid for the library."
    )

    reading = do("List the key points", whole)

    assert reading.text.count("forty") == 1
    assert reading.sentences == 3


def test_texts_with_a_heading_and_a_list_give_clean_lines() -> None:
    whole = "Rules of the house\n\n- No guest stays longer than\n  three nights in a row.\n- Everybody cleans the kitchen on Sunday.\n"

    assert do("key points please, from the text", whole + "\n").text.split("\n") == [
        "- Rules of the house", "- No guest stays longer than three nights in a row.", "- Everybody cleans the kitchen on Sunday.",
    ]  # fmt: skip


def is_right(case: tuple[str, str, str | None]) -> bool:
    number, question, expected = case
    reading = do(question, text(number))
    assert reading.task == "answer", question
    if expected is None:
        return reading == Reading(answers.NOT_ANSWERED, "answer", 0)
    return expected in reading.text and reading.sentences <= 3


def test_questions_it_was_made_with_are_answered_or_declined() -> None:
    assert [case for case in LEARNT if not is_right(case)] == []


def test_nine_in_ten_questions_it_was_not_made_with_are_answered_or_declined() -> None:
    """On the first run 30 of 33 answers were right, and 8 of 10 questions that the text does not answer were declined."""
    answerable = [case for case in HELD_OUT if case[2] is not None]
    others = [case for case in HELD_OUT if case[2] is None]

    assert (len(answerable), len(others)) == (33, 10)
    assert sum(map(is_right, answerable)) >= 30
    assert sum(map(is_right, others)) >= 8


def test_a_sentence_that_points_back_takes_the_one_before_it_along() -> None:
    whole = "The bridge opened in 1932. It spans the river Dee. Anna Holt drew the plans. They cost nothing."

    assert do("Which river does the bridge span?", whole).text == "The bridge opened in 1932. It spans the river Dee."


def test_a_question_in_the_text_is_answered_by_what_follows_it() -> None:
    faq = "How do I return an item?\nSend it back within thirty days.\n\nDo you ship abroad?\nWe ship to Norway and Iceland."

    assert do("How can I return an item?", faq).text == "Send it back within thirty days."


def test_spelling_grammar_and_doubled_words_are_corrected_and_nothing_else_is() -> None:
    cases = json.loads((CORPUS.parent / "mistakes.json").read_text())
    spelt = [case for case in cases if case["kind"] == "spelling"]

    for case in spelt:
        reading = read([{"role": "user", "content": f"Fix the typos:\n{case['text']}"}])
        assert reading.task == "fix_typos"
        assert case["wrong"] not in reading.text
    changed = read(
        [{"role": "user", "content": "Fix the typos: I recieved teh the letter. She dont knwo 😀 where teh dog went."}]
    )
    assert changed.text == "I received the letter. She doesn't know 😀 where the dog went."


@pytest.mark.parametrize("kept", [
    "The colour of the centre is grey.", "The color of the center is gray.", "It was eaten at the end of the day.\n",
])  # fmt: skip
def test_what_is_right_somewhere_or_a_matter_of_taste_stays(kept: str) -> None:
    assert read([{"role": "user", "content": f"Fix the typos:\n{kept}"}]).text == kept.strip()


def test_common_misspellings_become_what_was_meant() -> None:
    wrong, right = ("\n\n".join(f"We saw {word} there." for word in side) for side in (MEANT, MEANT.values()))

    assert do("Proofread the text", wrong).text == right


@pytest.mark.parametrize("asked", ["Write a poem about the sea", "Translate this to French", "hello", ""])
def test_what_it_cannot_do_it_says_in_a_sentence(asked: str) -> None:
    reading = read([{"role": "user", "content": asked}])

    assert reading == Reading(CANNOT, "none", 0)
    assert len(split(reading.text)) == 1


@pytest.mark.parametrize(
    "asked", ["Summarise this", "Key points?", "Fix the typos", "Who is the king of Spain?", "Summarise: ?! … ***"]
)
def test_without_a_text_it_says_so(asked: str) -> None:
    reading = read([{"role": "user", "content": asked}])

    assert reading in (Reading(NO_TEXT, "none", 0), Reading(CANNOT, "none", 0))
    assert read([]) == Reading(CANNOT, "none", 0)


def test_of_very_many_sentences_a_bounded_number_is_compared() -> None:
    many = split("".join(f"Sentence number {n} speaks of thing {n % 17}. " for n in range(3000)))

    assert len(ranks.ranked(many, ranks.bags(many))) == ranks.MAX_COMPARED


def full(piece: str) -> str:
    return (piece * (MAX_CHARS // len(piece)))[: MAX_CHARS - 100]


HOSTILE = {
    "no full stop": full("word and more things "), "one word": full("a"), "punctuation": full("?!.,;"), "brackets": full("("),
    "quotes": full('" '), "opening quotes": full("“"), "nested quotes": full("“‘«「") + full("」»’”"), "emoji": full("👩‍👩‍👧 "),
    "right to left": full("שלום עולם. مرحبا بالعالم؟ \u202e"), "ten thousand words": "Yes. " * 10_000,
    "ideographs": full("今日は天気がいい。散歩に行く。"),
    "different words": "".join(f"w{n}. " for n in range(10_000)), "surrogates": full("\ud800 x. "),
    "lines": full("a\n"), "stops": full(". "), "dots": full("."), "markers": full("- "), "colons": full(": "),
    "blanks": " " * (MAX_CHARS - 101) + "x", "fences": full("```"),
    "abbreviations": full("U.S.A. "), "instructions": full("summarise in two sentences "), "accents": full("\u0301"),
    "numbers": full("1. "), "labels": full("text: "), "null": full("\0"), "alike": full("alpha beta gamma delta epsilon. "),
}  # fmt: skip


@pytest.mark.parametrize("whole", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize(
    "instruction", ["Summarise in 2 sentences:\n", "Key points:\n", "What is the alpha of it?\n", ""]
)
def test_any_text_of_full_length_is_answered(instruction: str, whole: str) -> None:
    reading = read([{"role": "user", "content": instruction + whole[: MAX_CHARS - 100]}])

    assert reading.text
    assert isinstance(reading, Reading)
    assert reading.sentences >= 0


@pytest.mark.long
@pytest.mark.parametrize("whole", HOSTILE.values(), ids=HOSTILE.keys())
async def test_any_text_of_full_length_is_corrected_within_the_limit_of_a_job(whole: str) -> None:
    config = Settings(_env_file=None)  # type: ignore[call-arg]
    pool = CpuPool(1, config.cpu_memory_bytes, config.cpu_time_limit_s)

    reading = await pool.run(READ, [{"role": "user", "content": "Fix the typos:\n" + whole[: MAX_CHARS - 100]}])
    await pool.aclose()

    assert reading.text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "system", "assistant", "tool"]), st.text(max_size=200)), max_size=5))
def test_any_messages_at_all_are_answered_and_always_alike(said: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in said]

    assert read(messages) == read(messages)


def test_a_refusal_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TextRejected("text_too_long", "The text is too long.")))

    assert (error.code, str(error)) == ("text_too_long", "The text is too long.")


async def test_the_work_runs_in_a_child_by_its_name() -> None:
    pool = CpuPool(1, 2 << 30, 30)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Who wrote it?\nThe report is short. Ann Lee wrote it in May."}
    ]

    reading = await pool.run(READ, messages)
    with pytest.raises(TextRejected):
        await pool.run(READ, [{"role": "user", "content": "x" * 3 * MAX_CHARS}])
    await pool.aclose()

    assert reading == read(messages)
    assert "Ann Lee" in reading.text


def test_the_corpus_is_where_it_was() -> None:
    assert len(list(Path(CORPUS).glob("*.txt"))) == 20
