"""From a parsed, priced request to a prediction: where it is asked for, and a model's input by the model's own names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from limner.hub.pricing import MAX_OUTPUTS_FIELD
from limner.hub.providers import verdicts
from limner.hub.providers.base import ProviderCall, ProviderError
from limner.hub.providers.fetching import data_uri
from limner.hub.providers.replicate.config import Config

MODEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})/([A-Za-z0-9][A-Za-z0-9._-]{0,99})", re.ASCII)
VERSION = re.compile(r"([A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}:)?[0-9a-f]{8,64}", re.ASCII)
PICTURES = frozenset({"image", "images", "mask"})


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    body: bytes


def build(call: ProviderCall, config: Config) -> Request:
    """The request of a call. `provider_model`: owner/name for a model of Replicate's own kind, else a version.

    Raises ProviderError: provider_misconfigured (fatal) for a route that names no model, unsupported_input (fatal) for what the
    configuration has no name for, image_required (bad_request).
    """
    values: dict[str, Any] = {"input": _input(call, config)}
    if (hook := call.hook.url("replicate")) is not None:
        values |= {"webhook": hook, "webhook_events_filter": ["start", "completed"]}
    if found := MODEL.fullmatch(call.provider_model):
        return Request(f"/models/{found[1]}/{found[2]}/predictions", orjson.dumps(values))
    if VERSION.fullmatch(call.provider_model):
        return Request("/predictions", orjson.dumps({"version": call.provider_model, **values}))
    words = "The route's model must be owner/name, owner/name:version or a version."
    raise ProviderError("provider_misconfigured", words, "fatal")


def _input(call: ProviderCall, config: Config) -> dict[str, Any]:
    """What the request sets of the fields that have a name there; what it sets of others would be priced and not executed."""
    given = {name: value for name, value in call.input.items() if value is not None and name not in PICTURES}
    given |= _pictures(call, set(config.fields.values()))
    if given.get(MAX_OUTPUTS_FIELD) == 1 and MAX_OUTPUTS_FIELD not in config.fields.values():
        del given[MAX_OUTPUTS_FIELD]  # one is what a model makes that knows no number
    if unknown := sorted(set(given) - set(config.fields.values())):
        raise verdicts.unsupported(unknown[0])
    sent = {theirs: given[ours] for theirs, ours in config.fields.items() if ours in given}
    return {**config.constants, **sent}


def _pictures(call: ProviderCall, named: set[str]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    if call.images:
        if "images" in named:
            found["images"] = [data_uri(image) for image in call.images]
        elif len(call.images) == 1:
            found["image"] = data_uri(call.images[0])
        else:
            raise verdicts.unsupported("more than one image")
    elif "images" in call.input:
        raise ProviderError("image_required", "This model needs a picture.", "bad_request")
    if call.mask is not None:
        found["mask"] = data_uri(call.mask)
    return found
