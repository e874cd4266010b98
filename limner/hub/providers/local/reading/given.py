"""What chat messages ask, and of which text: the two often stand in one message, and are told apart by how people write them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from limner.hub.providers.local.reading import tasks
from limner.hub.providers.local.reading.sentences import split
from limner.hub.providers.local.reading.shapes import MAX_CHAT_CHARS, Request, Task, TextRejected, check_length

MAX_HEAD = 300
"""Characters of an instruction before a colon."""
MAX_LINE = 400
"""Characters of a line that is an instruction."""
MIN_QUOTED = 40
"""Characters between quotation marks: what is shorter is a word that is spoken of, unless it is to be corrected."""
MIN_BARE = 40
"""Characters of an earlier message that is a text without saying so, or of a text beside a question."""
FENCES = ("```", '"""', "'''")
LANGUAGE = re.compile(r"\w{1,20}[ \t]*\n")
QUOTES = (("“", "”"), ('"', '"'), ("«", "»"))
LABELLED = re.compile(
    r"^[ \t]*[#*_]{0,4}(?:(?P<text>(?:the )?(?:text|context|article|passage|document|content|source))"
    r"|(?P<ask>question|task|instructions?|query|request))[*_]{0,2}[ \t]*:[*_]{0,2}",
    re.IGNORECASE | re.MULTILINE,
)
COLON = re.compile(r":(?=\s|[\"“'«`])")
ADDRESSED = re.compile(
    r"\W*(?:you are|you're|you will|you must|you should|act as|your (?:task|job|role)|answer|use|always|never|respond|reply|be)\b",
    re.IGNORECASE,
)
PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Said = tuple[str, str]
"""A message: its role and its text."""
Parted = tuple[str, str]
"""An instruction, and the text it is about."""


def asked(messages: Sequence[Mapping[str, object]]) -> Request:
    """What the last message of the user asks, and the text: from the same message, else the longest of an earlier one.

    An instruction may also stand in the system's message, when the user's names no task. Messages are of OpenAI's shape; parts that
    are no text, and roles that are neither user's nor system's, are left out. Raises TextRejected bad_message for what has no such
    shape, text_too_long.
    """
    said = [(_role(message), _content(message)) for message in messages]
    check_length("".join(content for _, content in said), MAX_CHAT_CHARS)
    last = max((place for place, (role, _) in enumerate(said) if role == "user"), default=-1)
    if last < 0:
        return Request("none", "", "", None)
    instruction, text = _found(said[:last], said[last][1])
    check_length(text)
    return Request(_task(instruction) or "none", instruction, text.strip(), tasks.amount(instruction))


def parted(message: str) -> Parted:
    """The instruction of a message and the text that it brings, "" when nothing sets a text apart."""
    for part in (_labelled, _fenced, _after_colon, _lines, _quoted):
        if found := part(message):
            return found
    return message.strip(), ""


def _found(before: Sequence[Said], message: str) -> Parted:
    instruction, text = parted(message)
    if _task(instruction) is None:
        standing = _standing(before, message)
        if standing is not None:
            return standing, text or message
        return _sentences(message) or (instruction, text)
    return (instruction, text) if text else _weakly(message, _earlier(before))


def _task(instruction: str) -> Task | None:
    return tasks.named(instruction) if len(instruction) <= 2 * tasks.MAX_INSTRUCTION else None


def _weakly(message: str, earlier: Iterable[str]) -> Parted:
    """The longest of the earlier texts, or of the message's own sentences behind the first or before the last."""
    longest = max(earlier, key=len, default="")
    found = _sentences(message)
    return found if found is not None and len(found[1]) > len(longest) else (message.strip(), longest)


def _role(message: Mapping[str, object]) -> str:
    role = message.get("role")
    if not isinstance(role, str):
        raise TextRejected("bad_message", "A message needs a role and a content.")
    return ROLES.get(role, "other")


def _content(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TextRejected("bad_message", "A message's content is a text or a list of parts.")
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))


def _standing(before: Sequence[Said], message: str) -> str | None:
    """An instruction of the system's for all that the user sends, when the message is a text to follow it with."""
    if len(message) < MIN_BARE or not _has_words(message):
        return None
    standing = (content for role, content in before if role == "system")
    return next((content for content in standing if _task(content) not in {None, "none"}), None)


def _earlier(said: Sequence[Said]) -> Iterator[str]:
    """The texts of earlier messages, the latest first."""
    for role, content in reversed(said):
        if role not in {"user", "system"}:
            continue
        instruction, text = parted(content)
        if not text:
            instruction, text = _sentences(content) or (instruction, "")
        if text and (role == "system" or tasks.is_command(instruction)):
            yield text
        elif role == "system":
            yield _beyond_address(content)
        elif len(content) >= MIN_BARE and (len(split(content)) > 1 or tasks.named(content) is None):
            yield content


def _beyond_address(content: str) -> str:
    """What a system's message holds beside the paragraphs that tell the model how to behave."""
    kept = [paragraph for paragraph in PARAGRAPH.split(content) if not ADDRESSED.match(paragraph)]
    text = "\n\n".join(kept).strip()
    return text if len(text) >= MIN_BARE else ""


def _labelled(message: str) -> Parted | None:
    """ "Text: … Question: …", in either order."""
    labels = list(LABELLED.finditer(message))
    text = next((match for match in labels if match["text"]), None)
    asks = [match for match in labels if match["ask"]]
    if len(asks) > 1:
        return None  # an interview
    if text and asks and asks[0].start() < text.start():
        return message[asks[0].end() : text.start()].strip(), message[text.end() :].strip()
    if asks:
        instruction = message[asks[0].end() :].strip()
        before = message[text.end() if text else 0 : asks[0].start()].strip()
        return (instruction, before) if before and len(instruction) <= MAX_LINE else None
    if text and text.start() <= MAX_LINE:
        rest = message[text.end() :].strip()
        return _if_named(message[: text.start()], rest) or _lines(rest)
    return None


def _fenced(message: str) -> Parted | None:
    """Between the first and the last of triple quotes or backticks."""
    for fence in FENCES:
        start, end = message.find(fence), message.rfind(fence)
        if end < start + len(fence):
            continue
        before, inside, after = message[:start], message[start + len(fence) : end], message[end + len(fence) :]
        if fence == FENCES[0] and (language := LANGUAGE.match(inside)):
            inside = inside[language.end() :]
        if len(before) + len(after) <= max(len(inside), MAX_LINE) and _has_words(inside):
            return f"{before.strip()} {after.strip()}".strip(), inside.strip()
    return None


def _after_colon(message: str) -> Parted | None:
    colon = COLON.search(message, 0, MAX_HEAD)
    if colon is None:
        return None
    head, text = message[: colon.start()], message[colon.end() :].strip()
    line = text.partition("\n")
    if any(quote in head for quote, _ in QUOTES) or "\n" in head.strip():
        return None
    if line[2] and tasks.is_question(line[0]):
        return None  # "Answer this: who …?" with the text below
    return _if_named(head, _unquoted(text))


def _lines(message: str) -> Parted | None:
    """The first line or the last: commands before questions, since a text may ask something itself."""
    cuts = [cut for cut in (_first(message), _last(message)) if cut is not None]
    if len(cuts) == 2 and _announces(cuts[0][0], cuts[1][0]):
        (first, _), (question, text) = cuts
        return question, text.removeprefix(first).strip()
    for wanted in (True, False):
        for instruction, text in cuts:
            named = tasks.named(instruction)
            if named is not None and wanted == tasks.is_command(instruction) and _is_text(named, text):
                return instruction, _unquoted(text)
    return None


def _announces(first: str, last: str) -> bool:
    """Whether the first line says that a question is to be answered, and the last one is the question."""
    return not tasks.is_question(first) and tasks.named(first) == "answer" and tasks.named(last) == "answer"


def _first(message: str) -> Parted | None:
    line, _, rest = message.strip().partition("\n")
    return (line.strip(), rest.strip()) if rest.strip() and len(line) <= MAX_LINE else None


def _last(message: str) -> Parted | None:
    rest, _, line = message.strip().rpartition("\n")
    return (line.strip(), rest.strip()) if rest.strip() and len(line) <= MAX_LINE else None


def _quoted(message: str) -> Parted | None:
    for opening, closing in QUOTES:
        start, end = message.find(opening), message.rfind(closing)
        if end <= start or start < 0:
            continue
        text = message[start + 1 : end]
        instruction = f"{message[:start].strip()} {message[end + 1 :].strip()}".strip()
        if len(text) >= MIN_QUOTED or tasks.named(instruction) == "fix_typos":
            return _if_named(instruction, text)
    return None


def _sentences(message: str) -> Parted | None:
    """The first sentence or the last, where nothing else sets the instruction apart."""
    found = split(message)
    if len(found) < 2:
        return None
    first, last = found[0], found[-1]
    cuts: list[tuple[str, str, Callable[[str], bool]]] = [
        (first.text, message[first.end :], tasks.is_command), (last.text, message[: last.start], tasks.is_command),
        (first.text, message[first.end :], tasks.is_question), (last.text, message[: last.start], tasks.is_question),
    ]  # fmt: skip
    for instruction, text, fits in cuts:
        rest = text.strip()
        is_more_of_it = len(rest) < 2 * MIN_BARE and tasks.is_command(rest)
        if fits(instruction) and not is_more_of_it and len(rest) >= MIN_BARE // 2:
            parts = _if_named(instruction, rest)
            if parts:
                return parts
    return None


def _if_named(instruction: str, text: str) -> Parted | None:
    task = tasks.named(instruction)
    return (instruction.strip(), text.strip()) if task is not None and _is_text(task, text) else None


def _is_text(task: Task, text: str) -> bool:
    """Whether something is there to read; a question is no text that answers one."""
    if task == "answer" and len(text) < 2 * MIN_BARE and tasks.is_question(text):
        return False
    return _has_words(text)


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _unquoted(text: str) -> str:
    """Without the quotation marks around the whole."""
    text = text.strip()
    for opening, closing in QUOTES:
        inside = text[1:-1]
        if len(text) > 2 and text[0] == opening and text[-1] == closing and opening not in inside:
            return inside
    return text
