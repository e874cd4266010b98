"""An extractive reader: it answers chat messages with sentences of the text it is given. Not a language model. CPU children only."""

from collections.abc import Mapping, Sequence

from limner.hub.providers.local.reading import answers, summaries, tasks
from limner.hub.providers.local.reading.given import asked
from limner.hub.providers.local.reading.sentences import split
from limner.hub.providers.local.reading.shapes import Reading, Request, Task, check_length
from limner.hub.providers.local.reading.typos import fixed

CANNOT = (
    "This model only picks sentences out of a text it is given (a summary, its key points, the answer to a question about it) or "
    "fixes its typos: it cannot write anything of its own."
)
NO_TEXT = "No text was given: this model only picks sentences out of a text it is given, or fixes its typos, and cannot write."


def read(messages: Sequence[Mapping[str, object]]) -> Reading:
    """What the last message of the user asks for, from the text that it or an earlier message brings.

    `messages`: of OpenAI's chat shape, a role and a content (a text, or parts of which those of type text are read). Four tasks
    are known: a summary, key points, typos fixed, a question answered. All that is quoted stands in the text, in this order, but for
    white space, which becomes one blank. For anything else, or without a text, the answer says what can be done: task "none".

    Raises TextRejected: text_too_long beyond MAX_CHARS of the text or MAX_CHAT_CHARS of all messages, bad_message.
    """
    return _done(asked(messages))


def do(task: Task, wish: str, text: str) -> Reading:
    """A named task on a text. `wish`: the question, or how much to say. Raises TextRejected text_too_long."""
    check_length(text)
    return _done(Request(task, wish, text.strip(), tasks.amount(wish)))


def _done(request: Request) -> Reading:
    if request.task == "none":
        return Reading(CANNOT, "none", 0)
    sentences = split(request.text)
    if not sentences:
        return Reading(NO_TEXT, "none", 0)
    if request.task == "fix_typos":
        return Reading(fixed(request.text), "fix_typos", len(sentences))
    if request.task == "answer":
        text, used = answers.answer(sentences, request.instruction, _most(request))
    elif request.task == "key_points":
        text, used = summaries.points(sentences, request.amount)
    else:
        text, used = summaries.summary(sentences, request.amount)
    return Reading(text, request.task, used)


def _most(request: Request) -> int:
    amount = request.amount
    return amount.count if amount is not None and amount.unit == "sentences" else answers.MOST
