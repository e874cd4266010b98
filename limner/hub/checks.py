"""Checks of a text that are answered at once: bounded in length, time and number, and never in a submit's way for long."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from limner.hub.providers.local.models import CHECK
from limner.hub.providers.local.writing import report
from limner.hub.providers.local.writing.report import Dialect, Report, Type
from limner.kit.cpu import CpuCrashed, CpuMemory, CpuPool, CpuTimeout
from limner.web.errors import ApiError, invalid

BUSY_S = 1
"""Retry-After of a full backlog, in seconds."""


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """Code points of a text, how many checks may run or wait in this process, seconds of one."""

    max_chars: int
    backlog: int
    time_limit_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A check as it was asked for; `ignore` and `types` as writing.prose.check takes them."""

    text: str
    dialect: Dialect
    ignore: Sequence[str]
    types: Sequence[Type]


def input_schema(max_chars: int) -> dict[str, Any]:
    """The JSON Schema of a request: the model's own, but that the text may be empty, and as long as is set here."""
    fields = CHECK.input_schema["properties"]
    text = {**fields["text"], "minLength": 0, "maxLength": max_chars}
    named = {name: CHECK.input_schema[name] for name in ("type", "required", "additionalProperties")}
    return {**named, "properties": {**fields, "text": text}}


class Checker:
    """Checks of this process, one after the other: what else needs the pool's child waits for one of them at most."""

    def __init__(self, pool: CpuPool, limits: CheckLimits) -> None:
        self.limits = limits
        self._pool = pool
        self._turn = asyncio.Lock()
        self._under_way: Counter[UUID] = Counter()

    async def check(self, org_id: UUID, wanted: Wanted) -> Report:
        """Wait for a turn, and check. Raises ApiError 503 `unavailable` where too many wait, 400 `text_not_checkable`."""
        share = max(1, self.limits.backlog // 2)
        if self._under_way.total() >= self.limits.backlog or self._under_way[org_id] >= share:
            raise _busy()
        self._under_way[org_id] += 1
        try:
            async with self._turn:
                return await self._in_a_child(wanted)
        finally:
            self._under_way[org_id] -= 1
            if not self._under_way[org_id]:
                del self._under_way[org_id]

    async def _in_a_child(self, wanted: Wanted) -> Report:
        with contextlib.suppress(CpuCrashed):  # somebody killed the child: not the text's fault until it happens again
            return await self._once(wanted)
        return await self._once(wanted, again=True)

    async def _once(self, wanted: Wanted, *, again: bool = False) -> Report:
        arguments = (wanted.text, wanted.dialect, wanted.ignore, wanted.types)
        try:
            found = await self._pool.run(report.CHECK, *arguments, time_limit_s=self.limits.time_limit_s)
        except CpuTimeout:
            raise _not_checkable(f"took more than {self.limits.time_limit_s:g} s") from None
        except CpuMemory:
            raise _not_checkable("took too much memory") from None
        except CpuCrashed:
            if not again:
                raise
            raise _not_checkable("could not be read") from None
        return cast(Report, found)


def _busy() -> ApiError:
    return ApiError(
        503, "unavailable", "Too many checks at once: try again in a moment.", headers={"retry-after": str(BUSY_S)}
    )


def _not_checkable(why: str) -> ApiError:
    return invalid({"/text": [f"{why}: send a shorter part"]}, "text_not_checkable", "The text cannot be checked.")
