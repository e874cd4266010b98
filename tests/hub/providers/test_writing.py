"""The writing check itself: places that are right to the character, and rules that know when to be silent."""

from pathlib import Path
from typing import Any

import pytest
from harper import Linter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from limner.hub import check_schemas
from limner.hub.providers.local.writing import cliches, parts, prose, wordiness, wording, words
from limner.hub.providers.local.writing.report import CHECK, DIALECTS, MAX_SUGGESTIONS, TYPES, Report, Suggestion, body
from limner.kit.cpu import CpuPool
from limner.settings import Settings
from tests.hub.providers.test_writing_corpus import MISTAKES

CLEAN = (Path(__file__).parents[3] / "fixtures" / "writing" / "clean" / "01-bread.txt").read_text()
SNIPPETS = [case["text"] for case in MISTAKES]
ODD = [
    "😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "𝒳𝓎", "e\u0301", "n\u0303", "\r\n", "\r\n\r\n", "\n", "\t", "\u00a0", "\u200b", "\ufeff", "“", "”",
    "’", "—",
       "ß", "ﬁ", "İ", "ǅ", "漢字", "עברית", "٣", "\U0010ffff", "(" * 70, "http://a.b/c?d=e", "x" * 100, "\0", " ",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(SNIPPETS) | st.sampled_from(ODD) | st.text(max_size=12), max_size=12).map("".join)


def units(text: str) -> list[bytes]:
    """The text in UTF-16 code units."""
    data = text.encode("utf-16-le", "surrogatepass")
    return [data[at : at + 2] for at in range(0, len(data), 2)]


def hold_together(text: str, report: Report) -> None:
    """What is true of every report."""
    utf16 = units(text)
    behind = 0
    for s in report.suggestions:
        assert text[s.start : s.end] == s.original
        assert b"".join(utf16[s.utf16_start : s.utf16_end]).decode("utf-16-le", "surrogatepass") == s.original
        assert behind <= s.start < s.end
        assert s.replacement != s.original
        assert s.replacement not in s.others
        assert s.type in TYPES
        assert s.severity in {"error", "warning", "suggestion"}
        assert 0 < len(s.explanation) <= prose.MAX_EXPLANATION
        behind = s.end
    assert len(report.suggestions) <= MAX_SUGGESTIONS
    assert report.characters == len(text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
@example("😀 She don't recieve 👩‍👩‍👧 the the e\u0301clair\r\nin order to 𝒳 it was eaten by us.")
@example("\r\n\r\n😀the the")
def test_the_original_is_the_text_between_its_positions_in_both_counts(text: str) -> None:
    hold_together(text, prose.check(text))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.sampled_from(DIALECTS))
def test_any_text_at_all_is_answered(text: str, dialect: Any) -> None:
    hold_together(text, prose.check(text, dialect))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["word ", "Stop. ", "\n\n", "x" * 90, "😀", " ", "é"]), max_size=400).map("".join))
def test_parts_are_the_text_in_bounded_pieces(text: str) -> None:
    found = list(parts.parts(text))

    assert [part.start for part in found] == [sum(len(p.text) for p in found[:n]) for n in range(len(found))]
    assert all(0 < len(part.text) <= parts.MAX_PART for part in found)
    for part in found:
        given_text = text[part.start : part.start + len(part.text)]
        assert all(
            part.hides(at, at + 1) or a == b for at, (a, b) in enumerate(zip(part.text, given_text, strict=True))
        )


def test_a_sentence_of_many_parts_is_one_sentence() -> None:
    text = "We saw " + ", ".join(["red cats", "old dogs", "wet fish", "big birds"] * 200) + "."

    assert len(list(parts.parts(text))) > 3
    assert "SentenceCapitalization" not in {s.rule for s in prose.check(text).suggestions}
    assert [s.rule for s in prose.check("the cat sleeps here and then it eats.").suggestions] == [
        "SentenceCapitalization"
    ]


def test_a_place_far_behind_is_as_right_as_the_first_one() -> None:
    text = "😀 " + (CLEAN + "\r\n\r\n") * 6 + "She don't know."

    report = prose.check(text)

    hold_together(text, report)
    assert report.suggestions[-1].original == "don't"
    assert report.suggestions[-1].utf16_start == report.suggestions[-1].start + 1


def found(text: str, **wanted: Any) -> list[tuple[str, str, str | None]]:
    """(type, original, replacement) of each suggestion."""
    return [(s.type, s.original, s.replacement) for s in prose.check(text, **wanted).suggestions]


def originals(text: str, kind: str) -> list[str]:
    return [original for found_kind, original, _ in found(text) if found_kind == kind]


def test_a_suggestion_carries_everything_an_editor_needs() -> None:
    [told] = body(prose.check("Did you 😀 recieve it?"))["suggestions"]

    assert told == {
        "type": "grammar", "severity": "error", "original": "recieve", "suggestion": "receive",
        "alternatives": told["alternatives"], "explanation": "“recieve” is not in the dictionary. Did you mean “receive”?",
        "position": {"start": 10, "end": 17}, "position_utf16": {"start": 11, "end": 18}, "rule": "SpellCheck",
    }  # fmt: skip
    assert len(told["alternatives"]) <= prose.MAX_OTHERS


def test_the_documents_example_is_what_is_answered() -> None:
    assert body(prose.check("Why did 😀 I recieve it now?")) == check_schemas.EXAMPLE


def test_counts_have_every_type() -> None:
    answer = body(prose.check("She don't eat."))

    assert answer["counts"] == {"grammar": 1, "brevity": 0, "cliche": 0, "passive": 0, "repetition": 0}
    assert (answer["language"], answer["dialect"], answer["words"], answer["truncated"]) == ("en", "american", 3, False)


def test_dialects_have_their_own_spellings() -> None:
    text = "The colour of the center."

    assert originals(text, "grammar") == ["colour"]
    for dialect in ("british", "australian", "canadian", "indian"):
        assert found(text, dialect=dialect) == [("grammar", "center", "centre")], dialect


def test_ignored_words_and_rules_in_any_case() -> None:
    text = "The limnerite is is here."

    assert {original for _, original, _ in found(text)} == {"limnerite", "is is"}
    assert found(text, ignore=["LIMNERITE"]) == [("repetition", "is is", "is")]
    assert {original for _, original, _ in found(text, ignore=["repeatedwords"])} == {"limnerite"}
    assert {original for _, original, _ in found(text, ignore=["limner"])} == {"limnerite", "is is"}


def test_only_the_types_that_are_wanted_and_none_is_hidden_by_an_unwanted_one() -> None:
    text = "At the end of the day, mistakes were made in order to win."

    assert {kind for kind, _, _ in found(text)} == {"cliche", "passive", "brevity"}
    assert found(text, types=["passive"]) == [("passive", "were made", None)]


@pytest.mark.parametrize("text", [
    "We met Ilse Okafor and Priya.", "Then Ms. Halloran spoke. Halloran's dog barked.", "They flew to Pinhão with Dr. Adeyemi.",
    "The PDFX and the QRZ agree.", "Write to foo_qux@exmaple.org or see exmpl.io/abcd.", "It runs on python3 and x86.",
    "He had had enough.", "a   b\n   c", "Every one of us came.", "He builds stone walls.", "Apples, pears and plums.",
    "The config has a non-zero size of 10 MiB.", "Wait ... it took 3-5 ms.",
])  # fmt: skip
def test_what_is_no_mistake_raises_no_alarm(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("wrong", "right"), [("Febuary", "February"), ("Wendesday", "Wednesday"), ("Amercia", "America")]
)
def test_a_name_that_is_one_slip_away_from_a_known_one_is_a_mistake(wrong: str, right: str) -> None:
    assert found(f"We met a man in {wrong} with a dog.") == [("grammar", wrong, right)]


def test_an_accent_of_its_own_is_never_cut_off() -> None:
    """What comes decomposed (NFD) may be words that Harper sees only a part of."""
    text = (
        "He recieved cafe\u0301s, nai\u0308ve re\u0301sume\u0301s, fiance\u0301es and cre\u0300me bru\u0302le\u0301e."
    )

    assert originals(text, "grammar") == ["recieved"]


def test_an_unknown_word_at_the_beginning_of_a_sentence_only_is_no_name() -> None:
    assert originals("Recieving guests is fun.", "grammar") == ["Recieving"]


@pytest.mark.parametrize("text", [
    "Das Wetter ist heute sehr schön und wir gehen zusammen in den Park, weil die Kinder dort spielen wollen und der Hund laufen muss.",
    "Le chat est sur la table et il regarde la fenêtre pendant que nous mangeons notre repas du soir avec nos amis de la ville.",
    "El perro corre por la calle mientras los niños juegan en el parque con una pelota roja que su madre compró ayer por la tarde.",
])  # fmt: skip
def test_another_language_is_told_and_left_alone(text: str) -> None:
    report = prose.check(text)

    assert (report.language, report.suggestions) == ("und", ())


@pytest.mark.parametrize(("text", "originals_found"), [
    ("The ball was thrown by the boy.", ["was thrown"]), ("It has been decided.", ["has been decided"]),
    ("The road is being built.", ["is being built"]), ("It will not be forgotten.", ["will not be forgotten"]),
    ("He got hit by a car.", ["got hit"]), ("She wants to be seen.", ["to be seen"]), ("They weren't ever told.", ["weren't ever told"]),
    ("The shop was closed by the police.", ["was closed"]), ("It was quickly and quietly sold.", []),
    ("She was tired.", []), ("The shop is closed.", []), ("We are interested in cats.", []), ("He got married.", []),
    ("It is located here.", []), ("There are a hundred cats.", []), ("He is unfinished.", []), ("The work is done by noon.", []),
    ("I am used to being early.", []), ("It was red. Painted walls shine.", []), ("They were, decided or not, late.", []),
])  # fmt: skip
def test_passives_and_what_only_looks_like_one(text: str, originals_found: list[str]) -> None:
    assert originals(text, "passive") == originals_found


@pytest.mark.parametrize(("text", "originals_found"), [
    ("He spoke loudly and laughed loudly.", ["loudly"]), ("A good day, a good night, a good life.", []),
    ("The house stood near the house behind the house.", ["house", "house"]),
    ("An important man has important friends.", ["important"]),
    ("An important man came. He has important friends.", []), ("We saw Berlin and loved Berlin because Berlin is big.", []),
    ("The the cat.", ["The the"]), ("The family met another family.", []),
])  # fmt: skip
def test_repetitions_that_readers_hear(text: str, originals_found: list[str]) -> None:
    assert originals(text, "repetition") == originals_found


@pytest.mark.parametrize(("text", "expected"), [
    ("Me and my brother left.", [("grammar", "Me and my brother", "My brother and I")]),
    ("Him and me left.", [("grammar", "Him and me", "He and I")]), ("They saw him and me.", []),
    ("There is three cats.", [("grammar", "There is", "There are")]), ("There was many a slip.", []),
    ("We need less cars and less stress.", [("grammar", "less", "fewer")]), ("It costs less always.", []),
    ("Between you and I, no.", [("grammar", "I", "me")]), ("Between you and me, no.", []),
    ("Everyone have it.", [("grammar", "have", "has")]), ("Does everyone have it?", []), ("Let everyone have it.", []),
    ("I seen that cat.", [("grammar", "I seen", "I saw")]), ("Have I seen that cat?", []),
    ("I look forward to meet you.", [("grammar", "meet", "meeting")]), ("I look forward to work.", []),
])  # fmt: skip
def test_slips_of_agreement(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert found(text) == expected


def test_capitals_are_kept_and_empty_means_leave_it_out() -> None:
    assert found("In order to win, run.") == [("brevity", "In order to", "To")]
    assert found("She made a decision.") == [("brevity", "made a decision", "decided")]
    [(_, original, replacement)] = found("It is important to note that cats purr.")
    assert (original, replacement) == ("It is important to note that", "")


def test_a_phrase_may_be_broken_by_a_line_end_but_not_by_a_stop() -> None:
    assert originals("We do it in order\r\nto win.", "brevity") == ["in order\r\nto"]
    assert originals("All is in order. To win is all.", "brevity") == []
    assert originals("All is in order\n\nTo win is all.", "brevity") == []


def spelt_out(line: str, wild: str) -> list[str]:
    """Every wording of a line of the tables, with a word for each `*`."""
    wordings = [""]
    for token in line.split():
        choices = [wild] if token == "*" else token.split("|")
        wordings = [f"{said} {choice}".strip() for said in wordings for choice in choices]
    return wordings


@pytest.mark.parametrize("wild", ["her", "the old man's"])
def test_every_line_of_the_tables_is_found_as_it_is_written(wild: str) -> None:
    lines = [
        *cliches.CLICHES.split(";"),
        *(line.partition("=")[0] for line in wordiness.WORDY.strip().splitlines()),
    ]
    texts = [text for line in lines for text in spelt_out(line, wild)]

    missed = [
        text for text in texts
        if not any(f.start == 0 and f.end == len(text) for f in wording.wordings(text, words.split(text)))
    ]  # fmt: skip

    assert len(texts) > 400
    assert missed == []


def test_the_tables_are_written_as_they_are_read() -> None:
    tables = wordiness.WORDY.strip().splitlines(), wordiness.LIGHT_VERBS.strip().splitlines()
    for line in (*cliches.CLICHES.split(";"), *tables[0], *tables[1]):
        phrase = line.partition("=")[0]
        assert phrase.strip(), "an empty phrase would be found everywhere"
        assert phrase == phrase.lower(), line
        assert "-" not in phrase, line
        assert "’" not in line, line


def test_more_than_anybody_reads_is_cut_and_said() -> None:
    text = "She don't know it. It is fine to say a thing or two about what we have here. " * 700

    report = prose.check(text)

    assert len(report.suggestions) == MAX_SUGGESTIONS
    assert report.truncated
    hold_together(text, report)


@pytest.mark.parametrize(("bound", "size"), [("MAX_UNKNOWN", 20), ("MAX_FINDINGS", 60)])
def test_a_text_full_of_names_ends_early_and_says_so(monkeypatch: pytest.MonkeyPatch, bound: str, size: int) -> None:
    """Each costs a look through the dictionary: how many looks there are is bounded, whatever comes of them."""
    monkeypatch.setattr(prose, bound, size)
    text = " ".join(
        f"We all went home then with our dear old Mr. X{letter}qvz." for letter in "abcdefghijklmnopqrstuvwxyz" * 6
    )

    report = prose.check(text)

    assert report.truncated
    assert report.suggestions == ()
    assert not prose.check(text[:200]).truncated


class PanicException(BaseException):
    """As PyO3 raises it."""

    __module__ = prose.PANICS


class PanickingLinter:
    """Harper, with what Rust's panics look like from Python on every part that has a certain word."""

    def __init__(self) -> None:
        self._linter = Linter()

    def organized_lints(self, text: str, **options: Any) -> Any:
        if "kaboom" in text:
            raise PanicException
        return self._linter.organized_lints(text, **options)


def test_a_panic_of_harpers_costs_one_part_and_not_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "_linters", lambda _: (PanickingLinter(), PanickingLinter()))
    text = (
        "The kaboom don't matter, in order to say so. " + "We say it again and go home. " * 80 + "\n\nShe don't know."
    )

    suggestions: tuple[Suggestion, ...] = prose.check(text).suggestions

    assert [s.original for s in suggestions if s.type == "grammar"] == ["don't"]
    assert [s.original for s in suggestions if s.type == "brevity"] == ["in order to"]


HARD = {
    "brackets": "(" * 100_000, "brackets with blanks": "( " * 50_000, "quotes": '" ' * 50_000, "one letter": "a" * 100_000,
    "emoji": "👩‍👩‍👧 " * 16_000, "one sentence": "word and more things " * 5_000, "commas": "a, " * 33_000,
    "no words": "xqzv wvut jklm " * 6_600, "names": "The Xqzv and Wvut " * 5_500, "lines": "a\n" * 50_000, "stops": ". " * 50_000,
    "wild phrases": "avoid the a b " * 7_000, "passives": "is being been was " * 5_500,
    "chains": "being " * 16_000,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("text", HARD.values(), ids=HARD.keys())
async def test_texts_that_are_made_to_take_long_are_done_within_the_limit(text: str) -> None:
    """Under the limits of a job when nobody sets others: where time grows with the square of the text, minutes would not do."""
    config = Settings(_env_file=None)  # type: ignore[call-arg]
    pool = CpuPool(1, config.cpu_memory_bytes, config.cpu_time_limit_s)

    report = await pool.run(CHECK, text[: config.check_max_chars])
    await pool.aclose()

    hold_together(text[: config.check_max_chars], report)
