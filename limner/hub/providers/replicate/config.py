"""A provider's address and configuration, read strictly: when an operator puts it, and again at each call."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from limner.hub.providers import rows, waiting
from limner.hub.providers.base import ConfigInvalid

BASE_URL = "https://api.replicate.com/v1"
KEYS = ("timeout_s", "poll_s", "wait_s", "input", "constants")
DEFAULT_INPUT = {"prompt": "prompt", "image": "image", "mask": "mask"}
"""By what names most models take them."""
MAX_WAIT_S = 60
MAX_FIELDS = 64
MAX_CONSTANTS_BYTES = 16 * 1024
OURS = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
THEIRS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Config:
    """`base_url` has no slash at its end. `fields`: limner's name of a field by the model's; `wait_s` 0: not held open."""

    base_url: str
    poll_s: float
    wait_s: int
    fields: Mapping[str, str]
    constants: Mapping[str, Any]


def read(base_url: str | None, config: Mapping[str, Any]) -> Config:
    """Raises ConfigInvalid with the field that is wrong, and none of its value."""
    rows.check_config(config, KEYS)
    wait_s = config.get("wait_s", 0)
    if isinstance(wait_s, bool) or not isinstance(wait_s, int) or not 0 <= wait_s <= MAX_WAIT_S:
        raise ConfigInvalid(f"config.wait_s must be a whole number of seconds, at most {MAX_WAIT_S}")
    fields = _fields(config.get("input", DEFAULT_INPUT))
    constants = _constants(config.get("constants", {}), fields)
    poll_s = waiting.poll_s(config.get("poll_s", waiting.POLL_S))
    return Config(rows.address(base_url), poll_s, wait_s, fields, constants)


def _fields(given: Any) -> dict[str, str]:
    wrong = ConfigInvalid(
        f'config.input must name the model\'s field for each of ours, as {{"prompt": "prompt"}}, at most {MAX_FIELDS}'
    )
    if not isinstance(given, dict) or len(given) > MAX_FIELDS:
        raise wrong
    for ours, theirs in given.items():
        if not OURS.fullmatch(ours) or not isinstance(theirs, str) or not THEIRS.fullmatch(theirs):
            raise wrong
    if len(set(given.values())) < len(given):
        raise ConfigInvalid("config.input has one of the model's fields twice")
    if "image" in given and "images" in given:
        raise ConfigInvalid(
            "config.input has image (one picture) and images (a list of them): a model takes one of the two"
        )
    return {theirs: ours for ours, theirs in given.items()}


def _constants(given: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(given, dict) or len(given) > MAX_FIELDS or not all(THEIRS.fullmatch(name) for name in given):
        raise ConfigInvalid(f"config.constants must be an object of the model's fields, at most {MAX_FIELDS}")
    if set(given) & set(fields):
        raise ConfigInvalid("config.constants has a field that config.input fills")
    if len(orjson.dumps(given)) > MAX_CONSTANTS_BYTES:
        raise ConfigInvalid(f"config.constants has more than {MAX_CONSTANTS_BYTES} bytes")
    return dict(given)
