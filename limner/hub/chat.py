"""A request of OpenAI's interface for texts and vectors: read once, bounded, and made into what a provider gets."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol
from uuid import UUID

import orjson

from limner.hub.catalog import Model, Route
from limner.hub.pricing import Tokens
from limner.hub.providers.base import Leave
from limner.hub.providers.texts import FRAME_TOKENS, IMAGE_TOKENS
from limner.web.errors import ApiError, invalid

MAX_CHOICES = 128
MANY = 10
"""Times as many values as other bodies: what vectors are made of may come as numbers, one for each token."""
MAX_MESSAGES = 10_000
MOST_TOKENS = 10_000_000
PRICED = {"service_tier": ("auto", "default"), "modalities": (["text"],)}
"""Fields that change the price: only these values pass."""
REFUSED = ("audio", "web_search_options", "prediction", "best_of")
"""Fields whose cost nobody could foresee."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_TOKENS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Surface:
    """One path of the interface: the field that has the text, the kind of models, the field of an answer that has what was made.

    `model`: the one that is meant where a request names none.
    """

    path: str
    content: str
    kind: str
    made: str
    writes: bool
    model: str | None = None


CHAT = Surface("/chat/completions", "messages", "text.generate", "choices", writes=True)
COMPLETIONS = Surface("/completions", "prompt", "text.generate", "choices", writes=True)
EMBEDDINGS = Surface("/embeddings", "input", "text.embed", "data", writes=False)
MODERATIONS = Surface("/moderations", "input", "text.moderate", "results", writes=False, model="omni-moderation-latest")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as parsed. `bound`: input tokens that it cannot exceed; `likely`: about as many as it will have."""

    surface: Surface
    raw: bytes
    value: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    choices: int
    max_output: int | None
    bound: int
    likely: int


class Answering(Protocol):
    """One kind of provider that answers at once. Both raise ProviderError and nothing else on purpose, `stream` on the way too."""

    async def whole(self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None) -> bytes:
        """The JSON of an answer, with its `usage`. Nobody is asked before `leave`."""
        ...

    def stream(
        self, route: Route, asked: Asked, model: Model, job_id: UUID, leave: Leave = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Server-sent events as they come, the counts and [DONE] at the end. Leaving early ends the provider's work. Nobody is
        asked before `leave`."""
        ...


def read(raw: bytes, value: dict[str, Any], surface: Surface) -> Asked:
    """A request as it came, and the object it is. Raises ApiError 400, with the field."""
    content, model = surface.content, value.get("model") or surface.model
    if not isinstance(model, str) or not 1 <= len(model) <= 200:
        raise invalid({"/model": ["is required: the name of a model"]}, message="Name a model.")
    texts = value.get(content)
    if not texts or not isinstance(texts, list | str) or (content == "messages" and not isinstance(texts, list)):
        raise invalid({f"/{content}": ["is required"]}, message=f"{content} is required.")
    if isinstance(texts, list) and len(texts) > MAX_MESSAGES:
        raise invalid({f"/{content}": [f"must not have more than {MAX_MESSAGES} items"]})
    if content == "messages" and not all(isinstance(message, dict) for message in texts):
        raise invalid({"/messages": ["must be a list of objects"]})
    _refuse_what_changes_the_price(value)
    pictures, bytes_of_pictures = _pictures(value) if b"image_url" in raw else (0, 0)
    text_bytes = len(raw) - bytes_of_pictures
    count = len(texts) if isinstance(texts, list) else 1
    shown = pictures * IMAGE_TOKENS + FRAME_TOKENS
    options = value.get("stream_options")
    return Asked(
        surface=surface,
        raw=raw,
        value=value,
        model=model,
        stream=surface.writes and _flag(value, "stream"),
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
        choices=_whole(value, "n", MAX_CHOICES) or 1,
        max_output=next(
            (found for name in MAX_TOKENS if (found := _whole(value, name, MOST_TOKENS)) is not None), None
        ),
        bound=text_bytes + shown + FRAME_TOKENS * count,
        likely=text_bytes // 4 + shown // 4 + 1,
    )


def most(asked: Asked, model: Model) -> Tokens:
    """What the call can consume at most. Raises ApiError 400 for more than the model writes."""
    if not asked.surface.writes:
        return Tokens(asked.bound, 0, 0)
    longest = asked.max_output or model.max_output_tokens
    if longest > model.max_output_tokens:
        name = next(name for name in MAX_TOKENS if asked.value.get(name) is not None)
        raise invalid({f"/{name}": [f"must not be more than {model.max_output_tokens} for this model"]})
    return Tokens(asked.bound, 0, longest * asked.choices)


def payload(
    asked: Asked, model: Model, provider_model: str, max_tokens_field: str, own: Mapping[str, Any] = NOTHING
) -> bytes:
    """What a provider gets: the request as it came where nothing has to be changed. `own`: fields that are the operator's to set."""
    changes: dict[str, Any] = dict(own)
    if asked.value.get("model") != provider_model:
        changes["model"] = provider_model
    if asked.surface.writes and asked.max_output is None:
        changes[max_tokens_field] = model.max_output_tokens
    if asked.stream and not asked.wants_usage:
        options = asked.value.get("stream_options")
        changes["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return orjson.dumps(asked.value | changes) if changes else asked.raw


def used(usage: Any) -> Tokens | None:
    """What a provider says it counted; None where that cannot be true. An explicit zero is a zero."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    stated = (read, 0 if cached is None else cached, written)
    numbers = [number for number in stated if type(number) is int and 0 <= number <= 10**9]
    if len(numbers) != len(stated):
        return None
    found = Tokens(*numbers)
    return found if found.cached <= found.read else None


def _refuse_what_changes_the_price(value: Mapping[str, Any]) -> None:
    for name, allowed in PRICED.items():
        if value.get(name) is not None and value[name] not in allowed:
            raise invalid({f"/{name}": ["changes the price, and is not sold here"]}, "unsupported_value")
    for name in REFUSED:
        if value.get(name) is not None:
            raise invalid({f"/{name}": ["changes the price, and is not sold here"]}, "unsupported_parameter")


def _pictures(value: Mapping[str, Any]) -> tuple[int, int]:
    """Pictures among the messages, or the parts of an input, and the bytes of those that are given as data URIs."""
    number = size = 0
    for parts in (*(message.get("content") for message in value.get("messages", ())), value.get("input")):
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and part.get("type") == "image_url":
                number += 1
                url = part.get("image_url")
                text = url.get("url") if isinstance(url, dict) else url
                size += len(text) if isinstance(text, str) and text.startswith("data:image/") else 0
    return number, size


def _flag(value: Mapping[str, Any], name: str) -> bool:
    found = value.get(name)
    if found is not None and not isinstance(found, bool):
        raise invalid({f"/{name}": ["must be true or false"]})
    return bool(found)


def _whole(value: Mapping[str, Any], name: str, most_: int) -> int | None:
    found = value.get(name)
    if found is None:
        return None
    if type(found) is not int or not 1 <= found <= most_:
        raise invalid({f"/{name}": [f"must be a whole number from 1 to {most_}"]})
    return found


def no_model(name: str) -> ApiError:
    """404, the same for a model that does not exist and one that is not sold to this caller."""
    return ApiError(404, "model_not_found", f"The model {name[:200]!r} does not exist, or you have no access to it.",
                    details={"/model": ["is not a model that is sold here"]})  # fmt: skip
