"""Words by which questions and texts speak of the same thing, and what an answer to each kind of question has in it."""

import re
from collections.abc import Mapping
from functools import cache

from limner.hub.providers.local.reading.terms import stem

_KIN = """
live inhabitant population resident home reside dwell; cost price pay charge fee expensive cheap worth spend;
begin start launch commence; open opening; end finish close stop; die death kill; born birth; build construct erect builder;
make create produce manufacture; buy purchase acquire; sell sale; tall height high; long length; wide width broad; deep depth;
old age; fast speed quick; heavy weigh weight; far distance away; head director manager chief leader lead boss run;
job work profession occupation career trade; write author writer; invent inventor invention;
marry wife husband spouse marriage married; doctor physician; car vehicle automobile; film movie; reason cause;
show display exhibit; big large great huge; small little tiny; win winner victory; teach teacher; arrive arrival come reach;
leave depart departure; name call; own owner possess; help assist; child kid; often frequently; happen occur event;
find discover discovery; change alter; vote elect election; near nearby close; say speak tell claim; repair fix mend; colour color;
picture image photo; cat kitten; dog puppy; ship boat vessel freighter; hurt injure injury; use need; grow rise increase;
shrink fall drop decrease; hold contain; bring carry; get receive; begin found establish; travel trip journey
"""
"""Groups of words that ask for one another. Small on purpose: a wrong pair would be quoted as an answer."""

NUMBER_WORDS = (
    r"two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    r"|dozens?|hundreds?|thousands?|millions?|billions?|half|twice|once|none|couple"
)
NUMBER = re.compile(rf"\d[\d.,]*|\b(?:{NUMBER_WORDS})\b", re.IGNORECASE)
TIME = re.compile(
    r"\b\d{3,4}s?\b|\b\d{1,2}(?::\d\d|\s?[ap]\.?m\b)|\b(?:january|february|march|april|june|july|august|september|october|november|december"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)days?|spring|summer|autumn|winter|morning|evening|noon|midnight|night|dawn|today|yesterday"
    r"|tomorrow|centur(?:y|ies)|decades?|years?|months?|weeks?|days?|hours?|minutes?|ago|o'clock|when|after|before|during|until|since"
    r"|easter|christmas)\b|\bat (?:half past |a quarter (?:to|past) )?(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
    r"|\bin may\b|\bmay \d",
    re.IGNORECASE,
)
PLACE = re.compile(
    r"\b(?:in|at|on|near|from|to|into|of|above|across|behind|beside|by|under|inside|outside|along|beneath|between|around|off)\s+"
    r"(?:the|a|an|his|her|its|their|our|my|this|that|[A-Z])|\b(?:home|here|there|downtown|abroad|everywhere|nowhere|upstairs|overseas)\b"
)
REASON = re.compile(
    r"\b(?:because|since|so that|so|due to|owing to|thanks to|therefore|to [a-z]{3,}|reason|caused?|in order|as a result|for fear)\b",
    re.IGNORECASE,
)

_LENGTH = (
    r"inch(?:es)?|feet|foot|yards?|miles?|(?:kilo|centi|milli)?met(?:er|re)s?|km|cm|mm|knuckles?|stor(?:ey|ie)s|blocks?"
)
_DURATION = r"seconds?|minutes?|hours?|days?|weeks?|months?|years?|decades?|centur(?:y|ies)"
MEASURES = {
    adjective: re.compile(rf"\b(?:{units})\b", re.IGNORECASE)
    for adjectives, units in (
        ("tall high deep wide far", _LENGTH), ("long", f"{_LENGTH}|{_DURATION}"), ("old soon", _DURATION),
        ("fast", rf"{_LENGTH}|an hour|per hour|mph|kmh|knots?|{_DURATION}"),
        ("heavy", r"pounds?|ounces?|tons?|tonnes?|(?:kilo)?grams?|kg|stones?"),
        ("often", r"once|twice|times|daily|weekly|monthly|yearly|every|each"),
        ("big large", rf"{_LENGTH}|acres?|hectares?|square|inhabitants|people|members|times"),
    )
    for adjective in adjectives.split()
}  # fmt: skip
"""For what follows "how" in a question: the units in which a text says it, without the word itself."""


@cache
def groups() -> Mapping[str, frozenset[int]]:
    """For each term with kin: the groups it is of."""
    found: dict[str, set[int]] = {}
    for number, group in enumerate(_KIN.split(";")):
        for word in group.split():
            found.setdefault(stem(word), set()).add(number)
    return {term: frozenset(numbers) for term, numbers in found.items()}
