"""Two who read a text at the same time, each a share of it: Harper lets go of Python's lock while it reads."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import TypeVar

from limner.hub.providers.local.writing.parts import Part

T = TypeVar("T")
SWITCH_S = 0.001
"""How long one of them may keep Python's lock from the other, who needs it for a moment between two parts (Python's own: 5 ms)."""


@contextmanager
def at_once(first: Sequence[Part], second: Sequence[Part], read: Callable[[int, Part], T]) -> Iterator[Iterator[T]]:
    """What `read(reader, part)` gives for each part, in order; read one by one as they are asked for.

    Where there are two processors, reader 1 begins with the second share at once, in a thread of its own; it ends with the
    context, after the part it is at.
    """
    if (os.cpu_count() or 1) < 2:
        first, second = (*first, *second), ()
    ahead = [_thread().submit(read, 1, part) for part in second]
    try:
        yield chain((read(0, part) for part in first), (reading.result() for reading in ahead))
    finally:
        for reading in ahead:
            reading.cancel()
        wait(ahead)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "reader", initializer=sys.setswitchinterval, initargs=(SWITCH_S,))
