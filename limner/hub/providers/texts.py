"""Orders of text: what a task, a text and a wish become as messages of a chat (OpenAI's shape), and how many tokens that can be."""

from collections.abc import Mapping
from typing import Any, Protocol

IMAGE_TOKENS = 3_000
"""What one picture is held for: more than the large models count for one."""
FRAME_TOKENS = 64
"""What a server's own template may add to a request, and as much again for each message."""
PICTURE_KIND = "image.describe"
WRITING = ("text.generate", PICTURE_KIND)
SOLD_BY_TOKENS = frozenset({"text.generate", "text.embed", "text.moderate", PICTURE_KIND})
"""Kinds of models whose work can be bounded in tokens before it is done."""
BY_CALLS = frozenset({"text.moderate"})
"""No jobs: answered at once by /v1 only, and sold as what is sold by tokens is."""
TASKS = {
    "rewrite": "Rewrite the text below. Keep its meaning and its language. Answer with the new text only.",
    "summarise": "Summarise the text below, in its own language. Answer with the summary only.",
    "translate": "Translate the text below into {language}. Answer with the translation only.",
    "key_points": "List the key points of the text below.",
    "fix_typos": "Fix the typos in the text below.",
    "answer": "Answer from the text below only.",
}
"""By the task of a request; one to write has the prompt's words alone."""
DESCRIBE = "Describe this picture in one or two plain sentences, as an alternative text for people who cannot see it."
"""Asked of a picture where the request asks nothing."""
FIELDS = frozenset({"task", "text", "language", "prompt", "system"})


class Written(Protocol):
    """A model whose answers are bounded."""

    @property
    def max_output_tokens(self) -> int: ...


def messages(wanted: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a request: what holds for every answer, then the task, the wish and the text."""
    told = TASKS.get(wanted.get("task", ""), "").format(language=wanted.get("language", ""))
    wish, text = wanted.get("prompt") or "", wanted.get("text") or ""
    asked = " ".join(part for part in (told, wish) if part)
    said = [{"role": "user", "content": "\n\n".join(part for part in (asked, text) if part)}]
    system = wanted.get("system")
    return ([{"role": "system", "content": system}] if system else []) + said


def bound(wanted: Mapping[str, Any]) -> int:
    """Input tokens that a request cannot exceed: a token for each byte, as no tokenizer makes more of them."""
    said = messages(wanted)
    pictures = len(wanted.get("images") or ()) + (wanted.get("mask") is not None)
    size = sum(len(message["content"].encode("utf-8", "replace")) for message in said)
    return size + FRAME_TOKENS * (1 + len(said)) + IMAGE_TOKENS * pictures


def likely(wanted: Mapping[str, Any]) -> int:
    """About as many input tokens as a request has, where its provider did not count them."""
    return bound(wanted) // 4 + 1


def longest(kind: str, model: Written, given: Mapping[str, Any], parsed: Mapping[str, Any]) -> int:
    """The most output tokens of a request. Raises ValueError for more than the model writes.

    `given`: the request as it came, `parsed`: with the schema's defaults, which bow to the model's limit.
    """
    if kind not in WRITING:
        return 0
    most = model.max_output_tokens
    if (given.get("max_tokens") or 0) > most:
        raise ValueError(f"must not be more than {most} for this model")
    return min(int(parsed.get("max_tokens") or most), most)
