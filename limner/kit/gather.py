"""Group commit: what arrives while one batch is under way is sent as the next.

Nobody is made to wait for company: an idle lane sends one item at once, a busy one sends what has gathered.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Full(Exception):
    """As many wait already as may."""


class Gather(Generic[Item, Answer]):
    """`send` gets up to `size` items and gives each its answer, in order, or raises for all of them.

    There are `lanes`, each with one batch under way; at most `bound` items wait in each. `linger_s`: how long a batch
    waits after all, where nobody waits for its answer, until it is `company` or somebody is in a hurry.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        lanes: int,
        size: int,
        bound: int,
        linger_s: float = 0.0,
        company: int = 1,
    ) -> None:
        self._send = send
        self._linger_s = linger_s
        self._company = company
        self._enough = asyncio.Event()
        self._size = size
        self._bound = bound
        self._waiting: list[list[tuple[Item, asyncio.Future[Answer]]]] = [[] for _ in range(lanes)]
        self._ahead = False
        self._running: list[asyncio.Task[None] | None] = [None] * lanes

    @contextmanager
    def first(self) -> Iterator[bool]:
        """Whether nothing is under way: whoever asks may then go by itself, and who comes meanwhile takes a lane."""
        first = not self._ahead and not any(self._running)
        self._ahead |= first
        try:
            yield first
        finally:
            if first:
                self._ahead = False

    async def __call__(self, item: Item, lane: Hashable) -> Answer:
        """The item's answer; items of equal `lane` go one after another. Raises Full, and what `send` raised."""
        place = hash(lane) % len(self._waiting)
        waiting = self._waiting[place]
        if len(waiting) >= self._bound:
            raise Full
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting.append((item, answer))
        if len(waiting) >= self._company:
            self._enough.set()
        if self._running[place] is None:
            self._running[place] = asyncio.create_task(self._run(place))
        return await answer

    def hurry(self) -> None:
        """Let no batch linger: somebody waits for what is in it."""
        self._enough.set()

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s):
                await self._enough.wait()
        self._enough.clear()

    async def _run(self, place: int) -> None:
        waiting = self._waiting[place]
        while waiting:
            if self._linger_s:
                await self._linger()
            batch = waiting[: self._size]
            del waiting[: self._size]
            try:
                answers = await self._send([item for item, _ in batch])
            except Exception as error:  # each of them must hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # else whoever asked is gone
                    future.set_result(answer)
        self._running[place] = None
