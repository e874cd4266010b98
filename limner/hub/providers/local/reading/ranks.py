"""How much of a text each of its sentences carries: TextRank, with a little for its place.

R. Mihalcea and P. Tarau, "TextRank: Bringing Order into Texts", EMNLP 2004: a sentence is recommended by those that share words
with it, the more the better recommended they are themselves. H. P. Edmundson, "New Methods in Automatic Extracting", JACM
16 (1969): what stands at the beginning carries more.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence

from limner.hub.providers.local.reading.sentences import Sentence
from limner.hub.providers.local.reading.terms import leans, terms

MAX_COMPARED = 200
"""Sentences that are compared with each other: 20,000 pairs take some 50 ms, those of 2,000 sentences would take five seconds."""
DAMPING = 0.85
ROUNDS = 30
CLOSE_ENOUGH = 1e-6
FIRST = 0.3
"""What the first sentence gains for its place; the second gains half of it, the third a third."""
FEW_TERMS = 3
LESS_FOR_FEW = 0.5
LESS_FOR_QUESTIONS = 0.7
LESS_FOR_LEANING = 0.8
"""A sentence out of its place is hard to read when it has next to no words, asks, or points at the one before."""
ALIKE = 0.6
"""Two sentences that share this part of their terms (Jaccard) say the same."""

Bag = frozenset[str]


def bags(sentences: Sequence[Sentence]) -> list[Bag]:
    """The different terms of each sentence."""
    return [frozenset(terms(sentence.text)) for sentence in sentences]


def ranked(sentences: Sequence[Sentence], found: Sequence[Bag]) -> list[int]:
    """Places of sentences, best first; equals in the text's order. At most MAX_COMPARED of them.

    `found`: their bags. Of more sentences those take part that have most of the text's frequent terms for their length.
    """
    compared = _foremost(found)
    scores = _recommended([found[place] for place in compared])
    weighed = {
        place: score * _worth(sentences[place], found[place], place)
        for place, score in zip(compared, scores, strict=True)
    }
    return sorted(compared, key=lambda place: (-weighed[place], place))


def is_said(bag: Bag, others: Collection[Bag]) -> bool:
    """Whether one of the others says nearly the same."""
    return any(len(bag & other) >= ALIKE * len(bag | other) for other in others)


def _foremost(found: Sequence[Bag]) -> list[int]:
    if len(found) <= MAX_COMPARED:
        return list(range(len(found)))
    in_sentences = Counter(term for bag in found for term in bag)
    scores = [sum(in_sentences[term] for term in bag) / (len(bag) + FEW_TERMS) for bag in found]
    best = sorted(range(len(found)), key=lambda place: (-scores[place], place))
    return sorted(best[:MAX_COMPARED])


def _recommended(found: Sequence[Bag]) -> list[float]:
    """TextRank's scores. One is added to each length, so that sentences of one term can be compared."""
    links = _links(found)
    given = [math.fsum(weight for _, weight in row) for row in links]
    scores = [1.0] * len(found)
    for _ in range(ROUNDS):
        after = [
            1 - DAMPING + DAMPING * sum(weight * scores[other] / given[other] for other, weight in row) for row in links
        ]
        change = max((abs(a - b) for a, b in zip(scores, after, strict=True)), default=0.0)
        scores = after
        if change < CLOSE_ENOUGH:
            break
    return scores


def _links(found: Sequence[Bag]) -> list[list[tuple[int, float]]]:
    links: list[list[tuple[int, float]]] = [[] for _ in found]
    lengths = [math.log(len(bag) + 1) for bag in found]
    for a, bag in enumerate(found):
        for b in range(a):
            if shared := len(bag & found[b]):
                weight = shared / (lengths[a] + lengths[b])
                links[a].append((b, weight))
                links[b].append((a, weight))
    return links


def _worth(sentence: Sentence, bag: Bag, place: int) -> float:
    worth = 1 + FIRST / (place + 1)
    if len(bag) < FEW_TERMS:
        worth *= LESS_FOR_FEW
    if sentence.text.endswith("?"):
        worth *= LESS_FOR_QUESTIONS
    if place > 0 and leans(sentence.text):
        worth *= LESS_FOR_LEANING
    return worth
