"""Passive voice: a form of "to be" or "to get", then a past participle that is not merely an adjective."""

from collections.abc import Iterator, Sequence

from limner.hub.providers.local.writing.words import Found, Word, listed

BE = listed("is are was were be been being am isn't aren't wasn't weren't")
GET = listed("get gets got gotten getting")
BEFORE = listed(
    "has have had having hasn't haven't hadn't will won't would wouldn't can can't cannot could couldn't may might must shall should"
    " shouldn't to is are was were am being be been isn't aren't wasn't weren't not never"
)
"""What belongs to the verb when it stands before the form of "to be"."""
BETWEEN = listed(
    "not never always already often also just still now soon once then first again even ever almost both all seldom rarely"
)
IRREGULAR = listed(
    """arisen beaten begun bent bet bidden bitten blown borne bought bound bred broken brought built burnt cast caught chosen cut dealt
    done drawn driven drunk dug eaten fed felt flown forbidden foreseen forgiven forgotten fought found frozen given ground grown
    heard held hidden hit hung hurt kept knit known laid led left lent let lit lost made meant met misled mistaken mown outdone overcome
    overheard overseen overthrown overtaken paid proven put quit read rebuilt redone remade rewritten ridden rung said sawn
    seen sent set sewn shaken shaved shed shorn shot shown shut slain slung slit sold sought sown spent spilt split spoilt spoken spread
    spun stolen struck stung stricken strung sung sunk swept sworn swung taken taught thought thrown told torn trodden understood
    undertaken undone upheld upset withdrawn withheld won worn wound woven wrung written"""
)
ADJECTIVES = listed(
    """absorbed accustomed acquainted advanced aged alarmed amazed amused annoyed armed ashamed associated assorted astonished based
    bent biased bored bound broken burnt civilized closed colored coloured committed complicated composed concerned confused
    connected contented convinced crowded curved dedicated delighted depressed deserted detailed determined devoted disabled
    disappointed disposed distinguished distressed divided done dressed drunk educated embarrassed engaged equipped excited
    exhausted experienced exposed faded finished fixed fried frightened frozen frustrated furnished gifted gone grown hidden hurt
    inclined inspired interested intoxicated involved isolated jammed known left limited lined lit located locked lost married
    meant mistaken mixed motivated muted obliged obsessed opposed organized overcrowded overjoyed packed pleased pointed poised
    prepared proven puzzled qualified related relaxed relieved reserved retired rotten rounded rushed sacred satisfied scared
    scattered seated set settled shaken shocked shut situated skilled spread stressed stricken struck stuck stunned suited sunken
    supposed surprised surrounded swollen talented tempted terrified thrilled tied tired torn troubled twisted united unknown
    upset used varied wicked worn worried wounded"""
)
"""Participles that mostly say how something is; a "by" behind them makes a passive of them again."""
NO_PARTICIPLES = listed(
    """hundred sacred naked wicked rugged ragged crooked wretched hatred kindred indeed exceed proceed succeed speed seed need weed
    breed greed creed steed deed feed heed bleed reed shred embed biped moped aforementioned"""
)
NO_AGENTS = listed("now then noon midnight far hand default law definition itself themselves himself herself")
GET_PHRASES = listed("dressed engaged excited involved lost married older ready started stuck tired used worried upset")
MIN_REGULAR = 4
MAX_BETWEEN = 2
MAX_BEFORE = 6
WORDS = "Passive voice: say who does it, if it matters who."


def passives(words: Sequence[Word]) -> Iterator[Found]:
    """Each passive construction, from its first auxiliary to the participle."""
    at = 0
    while at < len(words):
        end = _participle(words, at) if words[at].low in BE or words[at].low in GET else None
        if end is None:
            at += 1
            continue
        first = at
        while (
            first > max(0, at - MAX_BEFORE) and words[first].joined and _belongs(words[first - 1].low, words[first].low)
        ):
            first -= 1
        yield Found("passive", "suggestion", "PassiveVoice", words[first].start, words[end].end, None, WORDS)
        at = end + 1


def _belongs(low: str, to: str) -> bool:
    """Whether a word is part of the verb that goes on with `to`: "to be", but not the "to" of "used to being"."""
    return low in BEFORE and not (low == "to" and to == "being")


def _participle(words: Sequence[Word], at: int, *, chained: bool = False) -> int | None:
    """Where the participle of the auxiliary at `at` stands, or None. `chained`: it is the "being" of "is being"."""
    place = at + 1
    skipped = 0
    while place < len(words) and words[place].joined and skipped < MAX_BETWEEN and _between(words[place].low):
        place += 1
        skipped += 1
    if place >= len(words) or not words[place].joined:
        return None
    low = words[place].low
    if low == "being":
        return None if chained else _participle(words, place, chained=True)
    if not _is_participle(low):
        return None
    agent = _has_agent(words, place)
    if words[at].low in GET:
        return None if low in GET_PHRASES else place
    if agent:
        return place
    return None if low in ADJECTIVES or (low.startswith("un") and low.endswith("ed")) else place


def _between(low: str) -> bool:
    return low in BETWEEN or (low.endswith("ly") and len(low) > MIN_REGULAR)


def _is_participle(low: str) -> bool:
    if low in IRREGULAR:
        return True
    return low.endswith("ed") and len(low) > MIN_REGULAR and low not in NO_PARTICIPLES


def _has_agent(words: Sequence[Word], place: int) -> bool:
    """Whether "by somebody" follows: not a time, and not "by doing"."""
    if (
        place + 2 >= len(words)
        or words[place + 1].low != "by"
        or not words[place + 1].joined
        or not words[place + 2].joined
    ):
        return False
    agent = words[place + 2].low
    return agent not in NO_AGENTS and not agent.endswith("ing")
