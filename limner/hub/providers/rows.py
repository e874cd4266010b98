"""What a provider's row says, as every adapter of a far server reads it. No message repeats a value: whoever reads it may be a tenant."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from limner.hub.providers.base import ConfigInvalid

MAX_URL = 2048
MAX_TIMEOUT_S = 3600
VISIBLE = re.compile(r"[!-~]+", re.ASCII)


def address(base_url: str | None) -> str:
    """The address without a slash at its end: http or https, a host, perhaps a port and a path. Raises ConfigInvalid.

    Whether it may be called is for egress to say.
    """
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


def check_config(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ConfigInvalid for a name that is not `known`, and a time limit that is none."""
    if "base_url" in config:
        raise ConfigInvalid("base_url stands beside config, not in it")
    if unknown := sorted(set(config) - set(known)):
        raise ConfigInvalid(f"config has unknown {', '.join(unknown)[:200]}; there are {', '.join(known)}")
    value = config.get("timeout_s", 1)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 < value <= MAX_TIMEOUT_S:
        raise ConfigInvalid(f"config.timeout_s must be a number of seconds above 0, at most {MAX_TIMEOUT_S}")
