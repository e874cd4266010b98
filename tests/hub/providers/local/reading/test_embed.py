"""Vectors: of length one, the same everywhere, and near to each other where texts share words."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.hub.providers.local.reading.embed import embed
from limner.hub.providers.local.reading.shapes import EMBED, MAX_CHARS, TextRejected
from limner.kit.cpu import CpuPool
from tests.hub.providers.local.reading.cases import MISTYPED, PARAPHRASED, REWORDED, UNRELATED

ROOT = Path(__file__).parents[5]
VISIBLE = st.text(max_size=80).filter(lambda text: bool(text.strip()))
SAMPLES = ["The quick brown fox.", "naïve café ﬁre", "今日は天気がいい。", "שלום עולם", "👩‍👩‍👧 ok", "?!", "a"]
DIGEST = "5ab60b9d8a910e8c"


def nearness(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def found(pairs: list[tuple[str, str]], dimensions: int) -> int:
    """How many have their partner nearest, among the partners of all pairs and sentences about something else."""
    pool = [other for kind in (MISTYPED, REWORDED, PARAPHRASED) for _, other in kind] + UNRELATED
    vectors = dict(zip(pool, embed(pool, dimensions), strict=True))
    count = 0
    for one, other in pairs:
        [vector] = embed([one], dimensions)
        nearest = max(pool, key=lambda text: nearness(vector, vectors[text]))
        count += nearest == other
    return count


def test_what_shares_words_is_nearest_and_what_only_means_the_same_is_so_more_often_than_not() -> None:
    """Measured among sixty: 12 of 12 mistyped, 12 of 12 reworded, 8 of 12 paraphrased."""
    assert (len(MISTYPED), len(REWORDED), len(PARAPHRASED), len(UNRELATED)) == (12, 12, 12, 24)
    assert found(MISTYPED, 384) == 12
    assert found(REWORDED, 384) == 12
    assert found(PARAPHRASED, 384) >= 7


def test_fewer_dimensions_find_less() -> None:
    every = [*MISTYPED, *REWORDED, *PARAPHRASED]

    assert found(every, 64) < found(every, 384) <= found(every, 1536) + 1


def test_texts_about_different_things_are_hardly_near() -> None:
    vectors = embed(UNRELATED)

    near = [nearness(a, b) for place, a in enumerate(vectors) for b in vectors[:place]]

    assert max(map(abs, near)) < 0.4
    assert abs(math.fsum(near) / len(near)) < 0.05


@settings(max_examples=200, deadline=None)
@given(VISIBLE, st.sampled_from([8, 9, 64, 384, 4096]))
def test_a_vector_has_length_one(text: str, dimensions: int) -> None:
    [vector] = embed([text], dimensions)

    assert len(vector) == dimensions
    assert abs(math.sqrt(math.fsum(value * value for value in vector)) - 1) <= 1e-9


@settings(max_examples=80, deadline=None)
@given(st.lists(VISIBLE, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_vector_does_not_depend_on_its_company(texts: list[str], random: object) -> None:
    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    together = dict(zip(shuffled, embed(shuffled, 64), strict=True))

    assert all(embed([text], 64) == [together[text]] for text in texts)


def test_case_forms_and_white_space_make_no_difference() -> None:
    assert embed(["The ﬁne   CAFÉ\n"]) == embed(["the fine cafe\u0301"])
    assert embed(["one two"]) != embed(["two one"])


@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003"])
def test_nothing_is_not_embedded(text: str) -> None:
    with pytest.raises(TextRejected) as caught:
        embed(["fine", text])
    assert caught.value.code == "text_empty"


@pytest.mark.parametrize("dimensions", [-1, 0, 7, 4097])
def test_other_dimensions_are_refused(dimensions: int) -> None:
    with pytest.raises(TextRejected) as caught:
        embed(["fine"], dimensions)
    assert caught.value.code == "bad_dimensions"


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(TextRejected) as caught:
        embed(["x" * (MAX_CHARS + 1)])
    assert caught.value.code == "text_too_long"


@pytest.mark.parametrize(
    "text", ["x" * MAX_CHARS, "?" * MAX_CHARS, "\ud800", "\0", "\u200d", "😀" * 50_000, "“" * 1000, "\u0301"]
)
def test_any_visible_text_has_a_vector(text: str) -> None:
    [vector] = embed([text], 16)

    assert abs(math.hypot(*vector) - 1) <= 1e-9


def test_every_process_finds_the_same_and_loads_nothing_heavy() -> None:
    """Hashes of strings differ from process to process; these vectors do not, in this version or the next."""
    program = (
        "import sys, json; from limner.hub.providers.local.reading import embed, pieces, shapes;"
        "heavy = {'harper', 'numpy', 'cv2'} & set(sys.modules);"
        "print(json.dumps([sorted(heavy), embed.embed(json.loads(sys.argv[1]), 64)]))"
    )
    answers = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program, json.dumps(SAMPLES)],
                env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True, cwd=ROOT,
            ).stdout
        )
        for seed in ("1", "2")
    ]  # fmt: skip

    assert answers[0] == answers[1] == [[], embed(SAMPLES, 64)]
    rounded = json.dumps([[round(value, 6) + 0.0 for value in vector] for vector in embed(SAMPLES, 64)])
    assert hashlib.sha256(rounded.encode()).hexdigest()[:16] == DIGEST


async def test_the_work_runs_in_a_child_by_its_name() -> None:
    pool = CpuPool(1, 2 << 30, 30)

    vectors = await pool.run(EMBED, SAMPLES, 32)
    await pool.aclose()

    assert vectors == embed(SAMPLES, 32)
