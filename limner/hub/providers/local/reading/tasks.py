"""What an instruction asks for, told by its words. English only."""

import re

from limner.hub.providers.local.reading.shapes import Amount, Task, Unit

MAX_INSTRUCTION = 600
"""Characters: what is longer is no instruction but a text; so much of either end is looked at."""
SUMMARISE = re.compile(
    r"\bsummari[sz]|\bsummar(?:y|ies)\b|\btl\s*;?\s*dr\b|\bsum(?:s|med|ming)?\b.{0,40}\bup\b|\bshorten|\bshorter\b|\bcondens|\babridge"
    r"|\bgist\b|\bboil\b.{0,40}\bdown\b|\bsynopsis\b|\bin (?:short|brief|a nutshell)\b|\bbrief(?:ly)? (?:overview|version)\b|\bpr[eé]cis\b"
    r"|^\W*(?:please\W+)?in (?:an?|one|two|three|four|five|\d{1,4}) (?:\w+ )?(?:sentences?|words?)\b.{0,20}$"
)
POINTS = re.compile(
    r"\b(?:key|main|major|most important|important|core|central|essential)\s+(?:points?|ideas?|take-?aways?|facts?|messages?|findings?"
    r"|insights?|things|statements?)\b|\bbullet(?:ed|s)?\b|\btake-?aways?\b|\bhighlights\b"
    r"|\blist (?:me )?(?:the |all )?(?:points|facts|ideas)\b"
)
FAULTS = r"(?:typos?|typing|misspell\w*|spelling|grammar|grammatical|mistakes?|errors?|punctuation|orthograph\w*)"
OBJECTS = r"(?:this|that|it|my|the|these|following)"
TYPOS = re.compile(
    rf"\b(?:fix|correct|repair|remove|mend|clean up|check|look over|edit|go over)\b.{{0,80}}\b{FAULTS}\b|\bproof-?\s?read|\bspell-?\s?check"
    rf"|\bcorrect {OBJECTS}\b|\bfix {OBJECTS} (?:text|sentences?|paragraphs?|e-?mail|message|letter)\b|\b{FAULTS}\b.{{0,40}}\bcorrected\b"
)
MAKING = re.compile(
    rf"\btranslat|\b(?:rewrit|rephras|reword|paraphras)(?!.{{0,60}}\b{FAULTS}\b)|\bin your own words\b|\bbrainstorm"
    r"|\bcontinue (?:the|this|my|writing)\b"
    r"|\b(?:write|compose|create|generate|invent|draft|make up|come up with|give|tell|make|need|want|like|turn .{1,30} into)"
    r" (?:(?:me|us) )?(?:(?:an?|some|two|three|my|your) )?(?:(?!summar|of\b|list)[\w-]+ ){0,3}"
    r"(?:poems?|haikus?|limericks?|sonnets?|verses?|songs?|lyrics|story|stories|tales?|essays?|letters?|e-?mails?|articles?|blog|posts?"
    r"|tweets?|code|scripts?|functions?|programs?|jokes?|slogans?|repl(?:y|ies)|dialogues?|speech|recipes?|plans?|images?|pictures?)\b"
    r"|^\W*(?:please\W+)?(?:write|compose|draft|imagine|pretend|calculate|compute|draw|invent|solve)\b"
    r"(?!.{0,40}(?:\bsummar|\bpoints\b|\bbullet|\btake-?aways))"
)
LEADING = r"^\W*(?:(?:please|now|then|ok|okay|so|and|also|hi|hello|hey|thanks|quickly|briefly|next|just)\W+){0,4}"
ASKING = (
    r"(?:(?:can|could|would|will) you\W+(?:please\W+)?|i(?:'d| would) like (?:you to )?|i (?:want|need) (?:you to )?"
    r"|help me\W+(?:to )?)?"
)
COMMAND = re.compile(
    LEADING
    + ASKING
    + r"(?:the |a |an |one |two |three |\d+ )?(?:summar|sum|tl|shorten|condens|abridg|list|give|name|extract|pick|find|write|make|fix"
    r"|correct|proof|check|repair|spell|bullet|key|main|show|tell|rewrite|translat|reduce|highlight|outline|provide|create|turn|clean|edit"
    r"|get|boil|answer|use|keep|reply|respond|be |do |in (?:a|an|one|two|three|four|five|\d+)\b)"
)
WH = r"(?:who|whom|whose|what|when|where|which|why|how)"
QUESTION = re.compile(LEADING + rf"(?:(?:in|at|on|by|for|from|to|since|until|with|about) )?{WH}\b")
AUXILIARY = r"\b(?:do|does|did|is|are|was|were|has|have|had|can|could|will|would|should|may|might|must)\b"
HAS_AUXILIARY = re.compile(AUXILIARY)
YES_OR_NO = re.compile(LEADING + AUXILIARY + r"(?!\s+you\b)")
ASKED = re.compile(
    rf"\b(?:tell|show|find|explain|say|describe|know|state)\b(?: me| us| out)?(?: exactly)? {WH}\b|^\W*(?:please\W+)?answer\b"
    r"|\banswer (?:the|this|my|these|following|from|using)\b|\bfrom the (?:text|passage|article|document)\b|\baccording to the\b"
    rf"|\b{WH} (?:it|they|he|she|this) (?:is|was|are|were|says?|said)\b"
)
TEXTS = r"(?:text|article|passage|document|story|message|paper|report|piece|essay)"
TEXT = rf"(?:it|this|that|(?:this|that|the) (?:\w+ )?{TEXTS}(?: above| below)?)"
SUMMARY_WANTED = re.compile(
    rf"\bwhat(?:'s| is| was) {TEXT} (?:all )?about\W*$|\bwhat does {TEXT} say\W*$"
    r"|\bwhat(?:'s| is| was| would be) (?:the|a) (?:\w+ )?(?:summary|gist|tl;?dr|synopsis)\b"
)
POINTS_WANTED = re.compile(
    r"\bwhat(?:'s| is| are| was| were)\b(?: the| its| your| some| \w+){0,4} "
    r"(?:key|main|major|most important|important|core|central|essential) "
    r"(?:points?|ideas?|take-?aways?|facts?|messages?|findings?|insights?)\b|\bwhat(?: are| were)\b.{0,20}\b(?:take-?aways|highlights)\b"
)
NUMBERS = {
    "a single": 1, "single": 1, "a couple of": 2, "a few": 3, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "fifty": 50,
    "a hundred": 100, "one hundred": 100, "hundred": 100, "two hundred": 200,
}  # fmt: skip
NUMBER = r"(\d{1,6}|" + "|".join(sorted(NUMBERS, key=len, reverse=True)) + r")"
UNITS = (
    r"(sentences?|words?|characters?|letters?|chars|points?|bullets?|take-?aways?|ideas?|facts?|lines?|items?|highlights?|things"
    r"|findings?|insights?|messages?)\b"
)
BETWEEN = r"[\s-]+(?:[a-z]+[\s-]+){0,2}?"
BOUND = r"\b(?:in|to|into|under|within|most|than|about|around|of|exactly|only|using|with|maximum|max|top|best)\s+(?:the\s+)?"
AMOUNT = re.compile(rf"\b{NUMBER}{BETWEEN}{UNITS}")
BOUND_AMOUNT = re.compile(rf"{BOUND}{NUMBER}{BETWEEN}{UNITS}")
ONE_SENTENCE = re.compile(r"\b(?:in|to|into|as|with) an? (?:\w+ )?sentence\b|\bone[- ]sentence\b")
BY_UNIT: dict[str, Unit] = {"wor": "words", "cha": "characters", "let": "characters"}


def named(instruction: str) -> Task | None:
    """The task that an instruction names: "none" for one that is not done here, None when it names no task at all."""
    low = _ends(instruction).lower().replace("’", "'")
    question = is_question(instruction)
    if question and (QUESTION.match(low) or YES_OR_NO.match(low)):
        return _wanted(low)
    if MAKING.search(low):
        return "none"
    commands: tuple[tuple[Task, re.Pattern[str]], ...] = (
        ("fix_typos", TYPOS), ("key_points", POINTS), ("summarise", SUMMARISE)
    )  # fmt: skip
    for task, pattern in commands:
        if pattern.search(low):
            return task
    return "answer" if question or ASKED.search(low) else None


def is_command(line: str) -> bool:
    """Whether a line tells to do something, rather than being a sentence of a text that speaks of it."""
    low = _ends(line).lower().replace("’", "'")
    return COMMAND.match(low) is not None or (is_question(line) and _wanted(low) != "answer")


def is_question(line: str) -> bool:
    """Whether a line asks: by its question mark, or by how it begins."""
    low = _ends(line).lower().strip()
    if low.rstrip("\"'”’)] ").endswith(("?", "？")):
        return True
    return QUESTION.match(low) is not None and "," not in low and HAS_AUXILIARY.search(low[:60]) is not None


def amount(instruction: str) -> Amount | None:
    """How much an instruction asks for, or None. Points, lines and the like are sentences."""
    low = _ends(instruction).lower()
    match = BOUND_AMOUNT.search(low) or AMOUNT.search(low)
    if match is None:
        return Amount(1, "sentences") if ONE_SENTENCE.search(low) else None
    count = NUMBERS.get(match[1]) or int(match[1])
    return Amount(max(1, count), BY_UNIT.get(match[2][:3], "sentences"))


def _wanted(low: str) -> Task:
    """The task of a question."""
    if POINTS_WANTED.search(low):
        return "key_points"
    if SUMMARY_WANTED.search(low):
        return "summarise"
    return "answer"


def _ends(instruction: str) -> str:
    if len(instruction) <= 2 * MAX_INSTRUCTION:
        return instruction
    return f"{instruction[:MAX_INSTRUCTION]}\n{instruction[-MAX_INSTRUCTION:]}"
