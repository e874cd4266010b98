"""Repetitions that a reader hears: a word again, too close to itself."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from limner.hub.providers.local.writing.words import Found, Word, listed

SHORT = 5
LONG = 8
OFTEN = 3
WITHIN = 30
NEAR = 12
ADVERB = 5
PLAIN = listed(
    """about above across after again against among another around because been before behind being below between could does doing down
    during each every everybody everyone everything first from have having here hundred into just might million more most much
    myself nobody nothing often only other others ought second several shall should since some somebody someone something sometimes
    somewhere still such than that their theirs them then there therefore these they thing things third this those though thousand
    through today together tomorrow toward towards under until very what whatever when whenever where wherever whether which while
    whole whose will with within without would years yesterday yourself billion minutes percent"""
)
NO_ADVERBS = listed(
    "only early family daily weekly monthly yearly likely friendly lovely lonely apply supply reply july italy assembly ugly silly"
)
WORDS = "“{word}” comes again so soon that readers notice: use another word, or say it once."


def echoes(text: str, words: Sequence[Word]) -> Iterator[Found]:
    """Words that come too often too close together, each time but the first.

    In one sentence: a word of five letters or more three times within thirty words, an adverb in -ly twice, a word of eight
    letters or more twice within twelve words. Names (capitals inside a sentence) are what they are, and left alone.
    """
    places: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, word in enumerate(words):
        if len(word.low) >= SHORT and word.low not in PLAIN and not _is_name(text, words, index):
            places[word.sentence, word.low].append(index)
    for (_, low), found in places.items():
        if len(found) > 1 and _is_heard(low, found):
            for index in found[1:]:
                word = words[index]
                shown = WORDS.format(word=low[:60])
                yield Found("repetition", "suggestion", "NearRepetition", word.start, word.end, None, shown)


def _is_heard(low: str, found: Sequence[int]) -> bool:
    if any(b - a <= WITHIN for a, b in zip(found, found[OFTEN - 1 :], strict=False)):
        return True
    closest = min(b - a for a, b in itertools.pairwise(found))
    if low.endswith("ly") and len(low) > ADVERB and low not in NO_ADVERBS:
        return closest <= WITHIN
    return len(low) >= LONG and 1 < closest <= NEAR


def _is_name(text: str, words: Sequence[Word], index: int) -> bool:
    word = words[index]
    begins = index == 0 or words[index - 1].sentence != word.sentence
    return text[word.start].isupper() and not begins
