"""A provider's address and configuration, read strictly: when an operator puts it, and again at each call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limner.hub.providers import rows, waiting
from limner.hub.providers.base import ConfigInvalid

BASE_URL = "https://api.defapi.org"
KEYS = ("timeout_s", "poll_s", "consumed_unit")
USD = "usd"


@dataclass(frozen=True, slots=True)
class Config:
    """`base_url` has no slash at its end. `in_usd`: what a task consumed is told in dollars, as its operator knows."""

    base_url: str
    poll_s: float
    in_usd: bool


def read(base_url: str | None, config: Mapping[str, Any]) -> Config:
    """Raises ConfigInvalid with the field that is wrong, and none of its value."""
    rows.check_config(config, KEYS)
    unit = config.get("consumed_unit")
    if unit not in (USD, None):  # a list is in no set, and raises there
        raise ConfigInvalid(f'config.consumed_unit must be "{USD}", or absent where nobody knows what it counts')
    poll_s = waiting.poll_s(config.get("poll_s", waiting.POLL_S))
    return Config(rows.address(base_url), poll_s, unit == USD)
