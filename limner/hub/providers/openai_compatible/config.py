"""A provider's address and configuration, read strictly: when an operator puts it, and again at each call."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from limner.hub.providers import rows
from limner.hub.providers.base import ConfigInvalid

KEYS = (
    "timeout_s", "organization", "max_tokens_field", "response_format", "transcription_format", "minute_cost_micro_usd", "referer",
    "title", "routing", "states_cost",
)  # fmt: skip
TRANSCRIPTION_FORMATS = ("verbose_json", "json")
MAX_MINUTE_COST = 10**9
HEADERS = {"referer": "HTTP-Referer", "title": "X-Title"}
ROUTING = frozenset(
    {
        "order",
        "only",
        "ignore",
        "allow_fallbacks",
        "require_parameters",
        "data_collection",
        "zdr",
        "quantizations",
        "sort",
        "max_price",
    }
)
MAX_ROUTING = 4096
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
ORGANIZATION = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
PRINTABLE = re.compile(r"[!-~]([ -~]{0,198}[!-~])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Config:
    """`base_url` has no slash at its end. `asks_base64`: pictures are asked for by `response_format`.

    `headers`: who asks, for gateways that want to know. `routing`: whom a gateway may ask, as its `provider` field says it.
    `states_cost`: the server says in its usage what a call cost, in dollars, once it is asked to.
    """

    base_url: str
    organization: str | None
    max_tokens_field: str
    asks_base64: bool
    transcription_format: str = "verbose_json"
    minute_cost_micro_usd: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    routing: Mapping[str, Any] | None = None
    states_cost: bool = False


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
    transcripts = config.get("transcription_format", TRANSCRIPTION_FORMATS[0])
    if transcripts not in TRANSCRIPTION_FORMATS:
        raise ConfigInvalid(f"config.transcription_format must be {' or '.join(TRANSCRIPTION_FORMATS)}")
    minute = config.get("minute_cost_micro_usd", 0)
    if type(minute) is not int or not 0 <= minute <= MAX_MINUTE_COST:
        raise ConfigInvalid("config.minute_cost_micro_usd must be a whole number of micro-dollars")
    states = config.get("states_cost", False)
    if not isinstance(states, bool):
        raise ConfigInvalid("config.states_cost must be true or false")
    return Config(
        rows.address(base_url), organization, field, asks is not None, transcripts, minute, _headers(config), _routing(config), states
    )  # fmt: skip


def _headers(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Texts that a header may hold."""
    found: list[tuple[str, str]] = []
    for name, header in HEADERS.items():
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not PRINTABLE.fullmatch(value):
            raise ConfigInvalid(f"config.{name} must be 1 to 200 printable ASCII characters")
        found.append((header, value))
    return tuple(found)


def _routing(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    routing = config.get("routing")
    if routing is None:
        return None
    if not isinstance(routing, dict) or not routing or set(routing) - ROUTING:
        raise ConfigInvalid(f"config.routing must be an object of {', '.join(sorted(ROUTING))}")
    if len(orjson.dumps(routing)) > MAX_ROUTING:
        raise ConfigInvalid(f"config.routing must not be longer than {MAX_ROUTING} bytes")
    return routing
