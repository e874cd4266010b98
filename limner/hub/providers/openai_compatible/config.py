"""A provider's address and configuration, read strictly: when an operator puts it, and again at each call."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from limner.hub.providers.base import ConfigInvalid

KEYS = ("timeout_s", "organization", "max_tokens_field", "response_format")
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
MAX_URL = 2048
MAX_TIMEOUT_S = 3600
ORGANIZATION = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
VISIBLE = re.compile(r"[!-~]+", re.ASCII)


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
    if "base_url" in config:
        raise ConfigInvalid("base_url stands beside config, not in it")
    if unknown := sorted(set(config) - set(KEYS)):
        raise ConfigInvalid(f"config has unknown {', '.join(unknown)[:200]}; there are {', '.join(KEYS)}")
    organization = config.get("organization")
    if organization is not None and not (isinstance(organization, str) and ORGANIZATION.fullmatch(organization)):
        raise ConfigInvalid("config.organization must be letters, digits, - and _, at most 100")
    field = config.get("max_tokens_field", MAX_TOKENS_FIELDS[0])
    if field not in MAX_TOKENS_FIELDS:
        raise ConfigInvalid(f"config.max_tokens_field must be {' or '.join(MAX_TOKENS_FIELDS)}")
    asks = config.get("response_format", "b64_json")
    if asks not in ("b64_json", None):  # a list is in no set, and raises there
        raise ConfigInvalid('config.response_format must be "b64_json", or null for servers that do not know it')
    _check_timeout(config)
    return Config(_address(base_url), organization, field, asks is not None)


def _check_timeout(config: Mapping[str, Any]) -> None:
    value = config.get("timeout_s", 1)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 < value <= MAX_TIMEOUT_S:
        raise ConfigInvalid(f"config.timeout_s must be a number of seconds above 0, at most {MAX_TIMEOUT_S}")


def _address(base_url: str | None) -> str:
    """http or https, a host, perhaps a port and a path. Whether it may be called is for egress to say."""
    wrong = ConfigInvalid(
        "base_url must be an address such as https://api.openai.com/v1: http or https, a host and a path"
    )
    if not base_url or len(base_url) > MAX_URL or not VISIBLE.fullmatch(base_url) or "\\" in base_url:
        raise wrong
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc or "?" in base_url or "#" in base_url:
        raise wrong
    return base_url.rstrip("/")
