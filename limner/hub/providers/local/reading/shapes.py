"""What the readers take and give, as plain data. Imports nothing heavy: every process may load this."""

from dataclasses import dataclass
from typing import Literal

Task = Literal["summarise", "key_points", "fix_typos", "answer", "none"]
"""What was asked for; "none": nothing that can be done, or no text to do it with."""
Unit = Literal["sentences", "words", "characters"]

MAX_CHARS = 200_000
"""Characters of one text, some 35,000 words: what is longer takes seconds, and is a book rather than a text."""
MAX_CHAT_CHARS = 2 * MAX_CHARS
"""Characters of all messages together: a text of full length, and as much talk about it."""
READ = "limner.hub.providers.local.reading.extract:read"
DIMENSIONS = 384
"""Of a vector, unless another length is asked for."""
FEWEST, MOST = 8, 4096
"""Dimensions that may be asked for."""
DO = "limner.hub.providers.local.reading.extract:do"
EMBED = "limner.hub.providers.local.reading.embed:embed"
"""The works' names for a CPU pool."""


class TextRejected(ValueError):
    """A text that is not read, for a reason its sender can act on.

    `code` is stable: text_too_long, text_empty, bad_message or bad_dimensions.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that pickle can rebuild it in the parent
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer to chat messages: `sentences` is how many sentences of the given text it holds, 0 when it quotes none."""

    text: str
    task: Task
    sentences: int


@dataclass(frozen=True, slots=True)
class Amount:
    """How much was asked for: at most so many of the unit, at least one."""

    count: int
    unit: Unit


@dataclass(frozen=True, slots=True)
class Request:
    """What the messages ask. `instruction`: the words that ask it; `text`: what it is asked of, "" when nothing was given."""

    task: Task
    instruction: str
    text: str
    amount: Amount | None


def check_length(text: str, limit: int = MAX_CHARS) -> None:
    """Raises TextRejected text_too_long when the text has more characters (code points) than the limit."""
    if len(text) > limit:
        raise TextRejected("text_too_long", f"The text has {len(text):,} characters; at most {limit:,} are read.")
