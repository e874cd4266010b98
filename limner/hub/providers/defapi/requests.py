"""From a parsed, priced request to a task."""

from dataclasses import dataclass
from typing import Any

import orjson

from limner.hub.pricing import MAX_OUTPUTS_FIELD
from limner.hub.providers import verdicts
from limner.hub.providers.base import ProviderCall, ProviderError
from limner.hub.providers.fetching import data_uri

RATIOS = ("1:1", "16:9", "21:9", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16")
OPENAI = "openai/"
KINDS = frozenset({"image.generate", "image.edit"})
KNOWN = frozenset({"prompt", "images", "mask", "aspect_ratio", MAX_OUTPUTS_FIELD})


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    body: bytes


def build(call: ProviderCall) -> Request:
    """The request of a call: models of OpenAI's have a path of their own.

    Raises ProviderError: unsupported_kind and unsupported_input (fatal), prompt_required and image_required (bad_request).
    """
    if call.kind not in KINDS:
        raise ProviderError("unsupported_kind", f"This provider does not run {call.kind}.", "fatal")
    given = {name: value for name, value in call.input.items() if value is not None}
    if unknown := sorted(set(given) - KNOWN):
        raise verdicts.unsupported(unknown[0])
    if call.mask is not None:
        raise verdicts.unsupported("mask")
    if given.get(MAX_OUTPUTS_FIELD, 1) != 1:
        raise verdicts.unsupported(MAX_OUTPUTS_FIELD)
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ProviderError("prompt_required", "This model needs a prompt.", "bad_request")
    if call.kind == "image.edit" and not call.images:
        raise ProviderError("image_required", "This model needs a picture.", "bad_request")
    body: dict[str, Any] = {"model": call.provider_model, "prompt": prompt}
    if call.images:
        body["images"] = [data_uri(image) for image in call.images]
    if (ratio := given.get("aspect_ratio")) is not None:
        if ratio not in RATIOS:
            raise verdicts.unsupported("aspect_ratio")
        body["aspect_ratio"] = ratio
    path = "/api/gpt-image/gen" if call.provider_model.startswith(OPENAI) else "/api/image/gen"
    return Request(path, orjson.dumps(body))
