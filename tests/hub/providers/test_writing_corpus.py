"""The writing check over a corpus that was written before it: what it finds, and what it takes for a mistake."""

import json
from pathlib import Path

import pytest

from limner.hub.providers.local.writing import prose

CORPUS = Path(__file__).parents[3] / "fixtures" / "writing"
MISTAKES = json.loads((CORPUS / "mistakes.json").read_text())
CLEAN = sorted((CORPUS / "clean").glob("*.txt"))
KINDS = ("grammar", "spelling", "brevity", "cliche", "passive", "repetition")


def places(text: str, wrong: str) -> list[tuple[int, int]]:
    """Where the wrong words stand, wherever they do."""
    low, sought = text.lower(), wrong.lower()
    return [(at, at + len(sought)) for at in range(len(low)) if low.startswith(sought, at)]


def is_found(case: dict[str, str]) -> bool:
    """Whether a suggestion of the right type touches the mistake."""
    wanted = "grammar" if case["kind"] == "spelling" else case["kind"]
    return any(
        suggestion.type == wanted and suggestion.start < end and start < suggestion.end
        for suggestion in prose.check(case["text"]).suggestions
        for start, end in places(case["text"], case["wrong"])
    )


def test_fifty_of_sixty_mistakes_are_found_and_most_of_each_kind() -> None:
    found = {kind: sum(is_found(case) for case in MISTAKES if case["kind"] == kind) for kind in KINDS}

    assert len(MISTAKES) == 60
    assert all(sum(case["kind"] == kind for case in MISTAKES) == 10 for kind in KINDS)
    assert sum(found.values()) >= 50, found
    assert min(found.values()) >= 7, found


def test_five_thousand_clean_words_raise_at_most_five_false_alarms() -> None:
    reports = [(path.name, prose.check(path.read_text())) for path in CLEAN]

    assert sum(len(path.read_text().split()) for path in CLEAN) >= 5000
    assert {report.language for _, report in reports} == {"en"}
    alarms = [(name, s.rule, s.original) for name, report in reports for s in report.suggestions]
    assert len(alarms) <= 5, alarms


def test_a_repair_leaves_nothing_to_repair_at_its_place() -> None:
    """The likeliest wording of every spelling and wordiness in the corpus is right by the check itself."""
    cases = [case for case in MISTAKES if case["kind"] in {"spelling", "brevity"}]
    for case in cases:
        [suggestion] = prose.check(case["text"]).suggestions
        assert suggestion.replacement is not None

        repaired = case["text"][: suggestion.start] + suggestion.replacement + case["text"][suggestion.end :]

        assert prose.check(repaired).suggestions == (), repaired


@pytest.mark.parametrize("path", CLEAN, ids=[path.stem for path in CLEAN])
def test_the_corpus_is_prose(path: Path) -> None:
    """Whoever adds to it keeps it what it says it is: paragraphs of words, no lists of tokens."""
    text = path.read_text()

    assert len(text.split()) > 200
    assert text.isprintable() or set(text) - set("\n") == {c for c in text if c.isprintable()}
    assert sum(len(word) for word in text.split()) / len(text.split()) < 7
