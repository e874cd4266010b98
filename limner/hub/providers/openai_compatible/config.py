"""A provider's address and configuration, read strictly: when an operator puts it, and again at each call."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from limner.hub.providers import rows
from limner.hub.providers.base import ConfigInvalid

KEYS = ("timeout_s", "organization", "max_tokens_field", "response_format")
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
ORGANIZATION = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Config:
    """`base_url` has no slash at its end. `asks_base64`: pictures are asked for by `response_format`."""

    base_url: str
    organization: str | None
    max_tokens_field: str
    asks_base64: bool


def read(base_url: str | None, config: Mapping[str, Any]) -> Config:
    """Raises ConfigInvalid with the field that is wrong, and none of its value: whoever reads it may be a tenant."""
    if not config:
        return _plain(base_url)
    return _read(base_url, config)


@lru_cache(maxsize=256)
def _plain(base_url: str | None) -> Config:
    return _read(base_url, {})


def _read(base_url: str | None, config: Mapping[str, Any]) -> Config:
    rows.check_config(config, KEYS)
    organization = config.get("organization")
    if organization is not None and not (isinstance(organization, str) and ORGANIZATION.fullmatch(organization)):
        raise ConfigInvalid("config.organization must be letters, digits, - and _, at most 100")
    field = config.get("max_tokens_field", MAX_TOKENS_FIELDS[0])
    if field not in MAX_TOKENS_FIELDS:
        raise ConfigInvalid(f"config.max_tokens_field must be {' or '.join(MAX_TOKENS_FIELDS)}")
    asks = config.get("response_format", "b64_json")
    if asks not in ("b64_json", None):  # a list is in no set, and raises there
        raise ConfigInvalid('config.response_format must be "b64_json", or null for servers that do not know it')
    return Config(rows.address(base_url), organization, field, asks is not None)
