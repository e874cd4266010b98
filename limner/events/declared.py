"""What a domain says of an event it announces: the catalogue is made of these."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Declared:
    """`data`: the JSON Schema (2020-12) of what clients get as `data`, in streams, pages and webhooks."""

    type: str
    meaning: str
    data: Mapping[str, Any]
