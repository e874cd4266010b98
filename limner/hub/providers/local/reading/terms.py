"""Words of any script, and the terms by which sentences are compared: without endings, without words that stand everywhere."""

import re
import unicodedata
from collections.abc import Iterator

from limner.hub.providers.local.writing.words import listed

IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
"""Chinese characters and kana, which are written without blanks between words."""
MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0981-\u0dfe\u0e31-\u0e3a"
    "\u0e47-\u0e4e\u0f71-\u0f84\u102b-\u103e\u17b4-\u17d3\u200c\u200d"
)
"""Accents, vowel signs and joiners that belong to the word they stand in, though Python counts them as no letters."""
LETTER = rf"(?:[^\W_{IDEOGRAPHS}]|[{MARKS}])"
WORD = re.compile(rf"{LETTER}+(?:['’]{LETTER}+)*|[{IDEOGRAPHS}]+")
"""A word with the apostrophes inside it, or a run of ideographs."""
IDEOGRAPH = re.compile(rf"[{IDEOGRAPHS}]")

STOP_WORDS = listed(
    """a about above after again against all almost also although always am among an and another any anybody anyone anything are aren't
    around as at be became because become becomes been before being below between both but by came can can't cannot come comes could
    couldn't did didn't do does doesn't doing don't done down during each either else enough even ever every everybody everyone
    everything few for from further get gets getting go goes going gone got had hadn't has hasn't have haven't having he he's her here hers
    herself him himself his how however i i'd i'll i'm i've if in instead into is isn't it it's its itself just keep kept last let
    let's like made make makes many may maybe me might more most much must my myself neither never no nobody none nor not nothing now
    of off often on once one only onto or other others our ours ourselves out over own perhaps quite rather really said same say
    says shall she she's should shouldn't since so some somebody someone something sometimes still such than that that's the their theirs
    them themselves then there there's therefore these they they're thing things this those though through thus to together too
    toward towards under until up upon us use used very was wasn't way we we're we've well went were weren't what what's whatever
    when whenever where wherever whether which while who who's whoever whom whose why will with within without won't would wouldn't
    yes yet you you'll you're you've your yours yourself"""
)
LEANING = listed(
    """also although and but he her hence his however if instead it its moreover nevertheless or otherwise she so still such that
    their them then these they this those though thus yet"""
)
"""A sentence that begins with one of these leans on the sentence before it."""
STARTERS = listed(
    """a all after an another as at before both but by each every for from here how i if in it its many most my no not on one our she
    some that the their then there these they this those to we what when where while who why with you your he his her"""
)
"""Words that begin many sentences and hardly ever follow an abbreviation within one, but for a few."""

_FORMS = """
arise arose arisen; beat beaten; become became; begin began begun; bite bit bitten; blow blew blown; break broke broken;
bring brought; build built; burn burnt; buy bought; catch caught; choose chose chosen; come came; deal dealt;
die died dying dead death; dig dug; draw drew drawn; drink drank drunk; drive drove driven; eat ate eaten; fall fell fallen;
feed fed; feel felt; fight fought; find found; fly flew flown; forget forgot forgotten; forgive forgave forgiven;
freeze froze frozen; get got gotten; give gave given; go went gone goes; grow grew grown; hang hung; have had has; hear heard;
hide hid hidden; hold held; keep kept; know knew known; lead led; leave left; lend lent; lie lying; lose lost; make made;
mean meant; meet met; pay paid; ride rode ridden; ring rang rung; rise rose risen; run ran; say said; see saw seen; seek sought;
sell sold; send sent; shake shook shaken; shoot shot; shrink shrank shrunk; sing sang sung; sink sank sunk; sit sat; sleep slept;
speak spoke spoken; spend spent; spread spreads; stand stood; steal stole stolen; stick stuck; strike struck; swear swore sworn;
sweep swept; swim swam swum; swing swung; take took taken; teach taught; tear tore torn; tell told; think thought;
throw threw thrown; use used using; wake woke woken; wear wore worn; win won; write wrote written; child children; foot feet;
goose geese; man men; mouse mice; person people persons; tooth teeth; wife wives; woman women; half halves; knife knives;
shelf shelves
"""
IRREGULAR = {form: forms.split()[0] for forms in _FORMS.split(";") for form in forms.split()}
"""Forms that no rule leads back to their word."""
HISSING = ("ses", "xes", "zes", "ches", "shes")
VOWEL = re.compile(r"[aeiouy]")
SHORTEST = 3


def words(text: str) -> Iterator[str]:
    """The words of a text as they stand; an ideograph is one."""
    for match in WORD.finditer(text):
        if IDEOGRAPH.match(match[0]):
            yield from match[0]
        else:
            yield match[0]


def plain(text: str) -> str:
    """One form for texts that read alike: compatibility forms resolved, case folded, straight apostrophes (Unicode, NFKC and casefold)."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).replace("’", "'")


def terms(text: str) -> list[str]:
    """The terms of a text in order: stems of its words but for stop words; of ideographs, each two that stand together."""
    found: list[str] = []
    for match in WORD.finditer(plain(text)):
        word = match[0]
        if IDEOGRAPH.match(word):
            found += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
        elif word not in STOP_WORDS:
            found.append(stem(word))
    return found


def stem(word: str) -> str:
    """What English forms of a word have in common, roughly: made for comparing, not for showing.

    Endings go in the order plural, -ing, -ed or -ly, then a final e and a doubled letter. A lighter stemmer errs less often
    on short texts than Porter's (1980) does: what it joins wrongly would be quoted as an answer.
    """
    if "'" in word:
        word = word.removesuffix("'s").rstrip("'")
    if not word.isascii() or len(word) <= SHORTEST or not word.isalpha():
        return IRREGULAR.get(word, word)
    known = IRREGULAR.get(word)
    word = _without_suffix(_singular(word)) if known is None else known
    if len(word) > SHORTEST and word.endswith("e"):
        word = word[:-1]
    if len(word) > SHORTEST and word[-1] == word[-2]:
        word = word[:-1]
    return word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > SHORTEST + 1:
        return word[:-3] + "y"
    if word.endswith(HISSING):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _without_suffix(word: str) -> str:
    if word.endswith("ied") and len(word) > SHORTEST + 1:
        return word[:-3] + "y"
    for suffix, shortest in (("ing", 3), ("ed", 3), ("ly", 4)):
        base = word.removesuffix(suffix)
        if base != word and len(base) >= shortest and VOWEL.search(base):
            return base
    return word


def leans(sentence: str) -> bool:
    """Whether a sentence begins with a word that points at the one before it."""
    first = WORD.search(sentence)
    return first is not None and first[0].lower().partition("'")[0] in LEANING
