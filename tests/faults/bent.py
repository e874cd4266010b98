"""limner with a clock that is wrong by SKEW_S seconds, or a local provider that first waits SLOW_S, as a far one would,
or that holds the whole event loop for BLOCK_S, as a mistake would.

Run as a program: `python bent.py worker`. time.time is wrong for everybody; datetime.now for limner's own modules (what
is written in C or Rust wants the real class).
"""

import asyncio
import datetime
import os
import sys
import time
from typing import Any

from limner.cli import serve, work
from limner.cli.main import main
from limner.hub.providers.base import ProviderCall, ProviderResult
from limner.hub.providers.local import adapter as local
from limner.hub.providers.local.adapter import LocalAdapter

SKEW_S = float(os.environ.pop("SKEW_S", "0"))
SLOW_S = float(os.environ.pop("SLOW_S", "0"))
BLOCK_S = float(os.environ.pop("BLOCK_S", "0"))
SHIFT = datetime.timedelta(seconds=SKEW_S)
LOADED = (serve, work)
"""Everything that an API and a worker consist of."""


class Likeness(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime.datetime)


class BentDatetime(datetime.datetime, metaclass=Likeness):
    """Only its idea of now is wrong: the values it makes are ordinary ones."""

    def __new__(cls, *args: Any, **facts: Any) -> Any:
        return datetime.datetime(*args, **facts)  # noqa: DTZ001

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.datetime.now(tz) + SHIFT

    @classmethod
    def utcnow(cls) -> Any:
        return datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + SHIFT


class FarAdapter(LocalAdapter):
    async def run(self, call: ProviderCall) -> ProviderResult:
        await asyncio.sleep(SLOW_S)
        time.sleep(BLOCK_S)
        return await super().run(call)


def bend_the_clock() -> None:
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + SKEW_S
    time.time_ns = lambda: right_ns() + int(SKEW_S * 1e9)
    for name, module in list(sys.modules.items()):
        if name.startswith("limner.") and getattr(module, "datetime", None) is datetime.datetime:
            vars(module)["datetime"] = BentDatetime


if __name__ == "__main__":
    if SKEW_S:
        bend_the_clock()
    if SLOW_S or BLOCK_S:
        vars(local)["LocalAdapter"] = FarAdapter
    main()
