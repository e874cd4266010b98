"""What is read of the catalog with every request, kept for seconds: a change shows within that."""

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from limner.hub.catalog import Model, Route
from limner.hub.schema import InputSchema

Entry = TypeVar("Entry")
ROUTES_S = 1.0
CACHE_S = 10.0
CACHE_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """A model beside its compiled schema, for the path of every request."""

    row: Model
    schema: InputSchema
    terms: Mapping[str, Any] | None = None
    """Of an order of this organization (hub.terms), but for the tone; None where it has no key of its own for it."""


class Remembered(Generic[Entry]):
    """What was read of an organization, each for `life_s` seconds."""

    def __init__(self, life_s: float) -> None:
        self._life_s = life_s
        self._entries: dict[tuple[UUID, Hashable], tuple[float, Entry]] = {}

    def find(self, org_id: UUID, name: Hashable) -> Entry | None:
        entry = self._entries.get((org_id, name))
        return entry[1] if entry and entry[0] > time.monotonic() else None

    def _keep(self, org_id: UUID, name: Hashable, entry: Entry) -> Entry:
        if len(self._entries) >= CACHE_ENTRIES:
            self._entries.clear()
        self._entries[org_id, name] = (time.monotonic() + self._life_s, entry)
        return entry


class RouteCache(Remembered[list[Route]]):
    """A model's routes by (organization, model), each for a second: a worker asks for them with every job."""

    def __init__(self) -> None:
        super().__init__(ROUTES_S)

    def put(self, org_id: UUID, model_id: UUID, routes: list[Route]) -> list[Route]:
        return self._keep(org_id, model_id, routes)


class ModelCache(Remembered[CompiledModel]):
    """Compiled models by (organization, name), each for ten seconds: a change of price shows within that."""

    def __init__(self) -> None:
        super().__init__(CACHE_S)

    def put(self, org_id: UUID, model: Model, terms: Mapping[str, Any] | None = None) -> CompiledModel:
        return self._keep(org_id, model.name, CompiledModel(model, InputSchema(model.input_schema, at="/input"), terms))
